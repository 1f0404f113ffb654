//! Tensors that an operation reads beside its inputs, any number of them.
//!
//! An operation of Burn's tape has a fixed number of inputs, and putting tensors together into one copies them: whole prompts
//! of a ResNet-50's blocks are 21 MB a step, and as much back. So each is put on the tape by a step of its own
//! ([`Held::hold`]), which passes a token on to the next and computes nothing. The operation that takes the last token as
//! one of its inputs finds the values here, and in its backward pass, which comes before theirs, leaves the gradients.

use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Device, Tensor, TensorData};

/// Where one tensor's values wait for the operation, and its gradient for the tape.
#[derive(Clone, Debug, Default)]
struct Slot(Arc<Mutex<Option<FlexTensor>>>);

impl Slot {
    fn put(&self, x: FlexTensor) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(x);
    }

    fn take(&self) -> Option<FlexTensor> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A tensor's place.
#[derive(Clone, Debug, Default)]
struct Place {
    shape: Vec<usize>,
    values: Slot,
    gradient: Slot,
}

/// A tensor to hold, of any rank.
#[derive(Debug)]
pub(super) struct Part {
    shape: Vec<usize>,
    tensor: FloatTensor<Dispatch>,
}

impl<const D: usize> From<Tensor<D>> for Part {
    fn from(tensor: Tensor<D>) -> Self {
        Self { shape: tensor.dims().to_vec(), tensor: tensor.into_dispatch() }
    }
}

/// Tensors, some of which may be missing.
#[derive(Clone, Debug, Default)]
pub(super) struct Held(Vec<Option<Place>>);

impl Held {
    /// Hold tensors for an operation on `device`; the token is none where nothing is held.
    pub(super) fn hold(
        tensors: impl IntoIterator<Item = Option<Part>>,
        device: &Device,
    ) -> (Self, Option<Tensor<1>>) {
        let mut token = None;
        let mut hold = |tensor: Option<Part>| {
            let Part { shape, tensor } = tensor?;
            let place = Place { shape, ..Place::default() };
            let before = token.take().unwrap_or_else(|| {
                Tensor::<1>::zeros([1], &device.clone().without_autodiff()).into_dispatch()
            });
            token = Some(<Dispatch as Holding>::hold(before, tensor, place.clone()));
            Some(place)
        };
        let places = tensors.into_iter().map(&mut hold).collect();
        (Self(places), token.map(Tensor::from_dispatch))
    }

    /// The values, once, of those that are there.
    pub(super) fn values(&self) -> Vec<Option<FlexTensor>> {
        self.0.iter().map(|place| place.as_ref()?.values.take()).collect()
    }

    /// Leave the gradients, as many as there are places; those of missing tensors go.
    pub(super) fn leave(&self, gradients: impl IntoIterator<Item = Vec<f32>>) {
        for (place, gradient) in self.0.iter().zip(gradients) {
            if let Some(place) = place {
                place.gradient.put(FlexTensor::from_data(TensorData::new(gradient, place.shape.clone())));
            }
        }
    }
}

#[backend_extension(Flex, Autodiff)]
trait Holding: Backend {
    /// Put a tensor's values into its place; gives the token back.
    fn hold(token: FloatTensor<Self>, x: FloatTensor<Self>, place: Place) -> FloatTensor<Self>;

    /// Take the gradient from its place; the token's own gradient says nothing.
    fn release(token: FloatTensor<Self>, place: Place) -> FloatTensor<Self>;
}

impl Holding for Flex {
    fn hold(token: FlexTensor, x: FlexTensor, place: Place) -> FlexTensor {
        place.values.put(x.to_contiguous());
        token
    }

    fn release(_token: FlexTensor, place: Place) -> FlexTensor {
        place.gradient.take().expect("the operation's backward pass comes first")
    }
}

impl<B: Holding, C: CheckpointStrategy> Holding for Autodiff<B, C> {
    fn hold(token: FloatTensor<Self>, x: FloatTensor<Self>, place: Place) -> FloatTensor<Self> {
        let nodes = [token.node(), x.node()];
        let (token, x) = (token.into_primitive(), x.into_primitive());
        match Release.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish(place.clone(), B::hold(token, x, place)),
            OpsKind::UnTracked(prepared) => prepared.finish(B::hold(token, x, place)),
        }
    }

    fn release(token: FloatTensor<Self>, _place: Place) -> FloatTensor<Self> {
        // Only the plain backend is asked.
        token
    }
}

#[derive(Debug)]
struct Release;

impl<B: Holding> Backward<B, 2> for Release {
    type State = Place;

    fn backward(self, ops: Ops<Place, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let output = grads.consume::<B>(&ops.node);
        let [token, x] = ops.parents;
        if let Some(x) = x {
            grads.register::<B>(x.id, B::release(output.clone(), ops.state));
        }
        if let Some(token) = token {
            grads.register::<B>(token.id, output);
        }
    }
}
