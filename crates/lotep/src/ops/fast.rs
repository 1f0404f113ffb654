//! The fast form of the hot operations as operations of Burn's tape.
//!
//! A [`FrozenOp`] works on slices and knows nothing of Burn. What it keeps for its backward pass is its own affair, and
//! documented there. The prompt that is added where the stream enters is part of the operation, because adding it
//! separately would cost a pass over memory. So is what a method learns inside, as one flat input
//! ([`LearningOp`]).

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Tensor, TensorData};
use lotep_frozen::{FrozenOp, Kept, LearningOp, NothingLearnt, Wanted, isa};
use lotep_kernels::norm;

/// One use of an operation.
#[derive(Clone, Debug)]
struct Call {
    op: Arc<dyn LearningOp>,
    /// Whether the second input is a prompt, or only holds its place.
    prompt: bool,
    /// Whether the third input is what is learnt inside, or only holds its place.
    learnt: bool,
    /// Compute the forward pass again in the backward pass instead of keeping anything but the input.
    recompute: bool,
    tape: Option<Arc<Mutex<Option<Tape>>>>,
}

/// What a tracked call leaves behind for its backward pass.
struct Tape {
    kept: Option<Kept>,
    /// Stream and prompt, kept only to compute again.
    inputs: Option<[FlexTensor; 2]>,
    learnt: FlexTensor,
    shape: Vec<usize>,
}

impl Debug for Tape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tape of {:?}", self.shape)
    }
}

impl Call {
    fn lock(&self) -> Option<std::sync::MutexGuard<'_, Option<Tape>>> {
        self.tape.as_ref().map(|tape| tape.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Frozen operations as a backend sees them.
#[backend_extension(Flex, Autodiff)]
trait Frozen: Backend {
    /// Run `call.op`.
    fn frozen_forward(
        x: FloatTensor<Self>,
        prompt: FloatTensor<Self>,
        learnt: FloatTensor<Self>,
        call: Call,
    ) -> FloatTensor<Self>;

    /// The gradients of the stream as it enters and of what is learnt inside; what is not wanted is empty.
    fn frozen_backward(
        grad: FloatTensor<Self>,
        call: Call,
        wanted: Wanted,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Its sum over the samples, in the shape of a prompt.
    fn frozen_sum(grad: FloatTensor<Self>, prompt: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The tensor with its values in order, which a part of a batch has as it is: `to_contiguous` copies that.
fn ordered(x: FlexTensor) -> FlexTensor {
    if x.as_slice::<f32>().is_some() { x } else { x.to_contiguous() }
}

/// A tensor's values, in order. Flex keeps what operations put out contiguous, so this copies nothing.
pub(super) fn values(x: &FlexTensor) -> &[f32] {
    x.as_slice().expect("contiguous f32")
}

fn tensor(values: Vec<f32>, shape: Vec<usize>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

fn dims(x: &FlexTensor) -> Vec<usize> {
    x.layout().shape().iter().copied().collect()
}

/// Values, or none where a tensor only holds a place.
fn given(x: &FlexTensor, is_given: bool) -> &[f32] {
    if is_given { values(x) } else { &[] }
}

impl Frozen for Flex {
    fn frozen_forward(x: FlexTensor, prompt: FlexTensor, learnt: FlexTensor, call: Call) -> FlexTensor {
        let [x, prompt, learnt] = [x, prompt, learnt].map(ordered);
        let shape = dims(&x);
        let keep = call.tape.is_some() && !call.recompute;
        let (added, inside) = (given(&prompt, call.prompt), given(&learnt, call.learnt));
        let (out, kept) = call.op.forward(values(&x), &shape, added, inside, keep);
        let output = tensor(out, call.op.output_shape(&shape));
        if let Some(mut tape) = call.lock() {
            let inputs = call.recompute.then_some([x, prompt]);
            *tape = Some(Tape { kept, inputs, learnt, shape });
        }
        output
    }

    fn frozen_backward(grad: FlexTensor, call: Call, wanted: Wanted) -> (FlexTensor, FlexTensor) {
        let grad = ordered(grad);
        let tape = call.lock().and_then(|mut tape| tape.take()).expect("a tape, consumed once");
        let inside = given(&tape.learnt, call.learnt);
        let kept = tape.kept.or_else(|| {
            let [x, prompt] = tape.inputs?;
            let added = given(&prompt, call.prompt);
            call.op.forward(values(&x), &tape.shape, added, inside, true).1
        });
        let kept = kept.expect("what the forward pass kept");
        let (stream, learnt) = call.op.backward(kept, &tape.shape, inside, values(&grad), wanted);
        let stream = if wanted.stream { tensor(stream, tape.shape) } else { tensor(stream, vec![0]) };
        let count = learnt.len();
        (stream, tensor(learnt, vec![count]))
    }

    fn frozen_sum(grad: FlexTensor, prompt: FlexTensor) -> FlexTensor {
        let shape = dims(&prompt);
        let mut out = vec![0.0; shape.iter().product()];
        norm::sum_samples(isa(), values(&ordered(grad)), &mut out);
        tensor(out, shape)
    }
}

impl<B: Frozen, C: CheckpointStrategy> Frozen for Autodiff<B, C> {
    fn frozen_forward(
        x: FloatTensor<Self>,
        prompt: FloatTensor<Self>,
        learnt: FloatTensor<Self>,
        mut call: Call,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), prompt.node(), learnt.node()];
        let (x, prompt, learnt) = (x.into_primitive(), prompt.into_primitive(), learnt.into_primitive());
        match InputGradient.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                call.tape = Some(Arc::default());
                let output = B::frozen_forward(x, prompt.clone(), learnt, call.clone());
                prepared.finish(State { call, prompt }, output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::frozen_forward(x, prompt, learnt, call)),
        }
    }

    fn frozen_backward(
        grad: FloatTensor<Self>,
        _call: Call,
        _wanted: Wanted,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        // Only the plain backend is asked; second derivatives are nowhere needed.
        (grad.clone(), grad)
    }

    fn frozen_sum(grad: FloatTensor<Self>, _prompt: FloatTensor<Self>) -> FloatTensor<Self> {
        grad
    }
}

#[derive(Debug)]
struct InputGradient;

#[derive(Clone, Debug)]
struct State<T> {
    call: Call,
    /// For its shape.
    prompt: T,
}

impl<B: Frozen> Backward<B, 3> for InputGradient {
    type State = State<FloatTensor<B>>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let output = grads.consume::<B>(&ops.node);
        let State { call, prompt } = ops.state;
        let [x, added, inside] = ops.parents;
        let added = added.filter(|_| call.prompt);
        let inside = inside.filter(|_| call.learnt);
        let wanted = Wanted { stream: x.is_some() || added.is_some(), learnt: inside.is_some() };
        let (gradient, learnt) = B::frozen_backward(output, call, wanted);
        if let Some(added) = added {
            grads.register::<B>(added.id, B::frozen_sum(gradient.clone(), prompt));
        }
        if let Some(inside) = inside {
            grads.register::<B>(inside.id, learnt);
        }
        if let Some(x) = x {
            grads.register::<B>(x.id, gradient);
        }
    }
}

/// Run an operation as one step of the tape. `prompt` has the shape of one sample.
pub(super) fn apply<const D: usize, const E: usize, const P: usize>(
    op: Arc<dyn FrozenOp>,
    recompute: bool,
    x: Tensor<D>,
    prompt: Option<Tensor<P>>,
) -> Tensor<E> {
    apply_learning(Arc::new(NothingLearnt(op)), recompute, x, prompt, None)
}

/// The same with what is learnt inside.
pub(super) fn apply_learning<const D: usize, const E: usize, const P: usize>(
    op: Arc<dyn LearningOp>,
    recompute: bool,
    x: Tensor<D>,
    prompt: Option<Tensor<P>>,
    learnt: Option<Tensor<1>>,
) -> Tensor<E> {
    let call = Call { op, prompt: prompt.is_some(), learnt: learnt.is_some(), recompute, tape: None };
    let place = || Tensor::<1>::zeros([1], &x.device().without_autodiff()).into_dispatch();
    let prompt = prompt.map_or_else(place, Tensor::into_dispatch);
    let learnt = learnt.map_or_else(place, Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as Frozen>::frozen_forward(x.into_dispatch(), prompt, learnt, call))
}

/// The same for maps `[B, C, H, W]` and a prompt `[C, H, W]`, which the operation sees with their channels last. What it
/// gives is a view of that: from operation to operation nothing is rearranged.
pub(super) fn apply_map(
    op: Arc<dyn FrozenOp>,
    recompute: bool,
    x: Tensor<4>,
    prompt: Option<Tensor<3>>,
) -> Tensor<4> {
    apply_map_learning(Arc::new(NothingLearnt(op)), recompute, x, prompt, None)
}

/// The same with what is learnt inside.
pub(super) fn apply_map_learning(
    op: Arc<dyn LearningOp>,
    recompute: bool,
    x: Tensor<4>,
    prompt: Option<Tensor<3>>,
    learnt: Option<Tensor<1>>,
) -> Tensor<4> {
    let prompt = prompt.map(|p| p.permute([1, 2, 0]));
    let y: Tensor<4> = apply_learning(op, recompute, x.permute([0, 2, 3, 1]), prompt, learnt);
    y.permute([0, 3, 1, 2])
}

/// The same for blocks whose parts run one by one: `open` sees the map with its channels last and its prompt added.
pub(super) fn apply_open(
    x: Tensor<4>,
    prompt: Option<Tensor<3>>,
    open: impl FnOnce(Tensor<4>) -> Tensor<4>,
) -> Tensor<4> {
    let x = x.permute([0, 2, 3, 1]);
    let x = match prompt {
        Some(prompt) => x + prompt.permute([1, 2, 0]).unsqueeze(),
        None => x,
    };
    open(x).permute([0, 3, 1, 2])
}
