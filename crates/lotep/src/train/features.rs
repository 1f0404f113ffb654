//! Features of a whole data set, computed once: a method without prompts never changes them.

use burn::tensor::{Tensor, TensorData};

use crate::backbone::NoHooks;
use crate::data::{Loader, Transform};
use crate::model::{Frozen, pixels};
use crate::{Error, Result};

/// Pooled features by image; a corrupt image has none.
pub(super) struct FeatureCache {
    rows: Vec<Option<Vec<f32>>>,
    labels: Vec<usize>,
}

impl FeatureCache {
    /// Run every image through the network once.
    pub(super) fn build(
        frozen: &Frozen,
        loader: &Loader,
        transform: &Transform,
        device: &burn::tensor::Device,
        mut progress: impl FnMut(usize) -> bool,
    ) -> Result<Self> {
        let dataset = loader.dataset().clone();
        let mut rows = vec![None; dataset.samples.len()];
        let mut done = 0;
        for batch in loader.in_order() {
            let batch = batch?;
            let indices = batch.indices.clone();
            if !indices.is_empty() {
                let features = frozen.features(pixels(batch, transform, device), &NoHooks);
                let width = features.dims()[1];
                let values: Vec<f32> = features.into_data().iter::<f32>().collect();
                for (index, row) in indices.iter().zip(values.chunks_exact(width)) {
                    rows[*index] = Some(row.to_vec());
                }
            }
            done += indices.len();
            if !progress(done) {
                return Err(Error::Interrupted(
                    "stopped while computing features: continue with --resume".into(),
                ));
            }
        }
        Ok(Self { rows, labels: dataset.samples.iter().map(|s| s.label).collect() })
    }

    /// Features `[B, F]` and labels of the images `indices`, without the corrupt ones.
    pub(super) fn batch(
        &self,
        indices: &[usize],
        device: &burn::tensor::Device,
    ) -> Option<(Tensor<2>, Vec<usize>)> {
        let found: Vec<_> =
            indices.iter().filter_map(|i| Some((self.rows[*i].as_ref()?, self.labels[*i]))).collect();
        let width = found.first()?.0.len();
        let values: Vec<f32> = found.iter().flat_map(|(row, _)| row.iter().copied()).collect();
        let labels: Vec<usize> = found.iter().map(|(_, label)| *label).collect();
        Some((Tensor::from_data(TensorData::new(values, [labels.len(), width]), device), labels))
    }
}
