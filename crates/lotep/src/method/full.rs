//! Full fine-tuning: every weight of the network is learnt, the comparison that prompts are measured by.
//!
//! While it is trained, the network is built anew from its weights at every step, in the portable form; its batch norms
//! use the batch's statistics, which the running ones follow, and Swin drops paths. Afterwards it is a network like any
//! other and takes the fast form.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Method, Prompts, Site};
use crate::backbone::{Backbone, Loaded, Weights};
use crate::ops::Training;
use crate::params::{Group, Params};
use crate::safetensors::NamedTensor;
use crate::{Result, bail};

/// What the network's weights are called in an adapter, before their own names.
pub(crate) const PREFIX: &str = "backbone.";

/// Full fine-tuning's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Full {
    /// Whether batch norms use the batch's statistics while training; else the stored ones, which then stay.
    pub batch_statistics: bool,
}

impl Default for Full {
    fn default() -> Self {
        Self { batch_statistics: true }
    }
}

/// Whether a tensor is a statistic rather than a weight.
fn is_statistic(name: &str) -> bool {
    name.contains(".running_")
}

impl Method for Full {
    fn init(&self, site: &Site<'_>, _seed: u64) -> Result<Params> {
        let Some(loaded) = site.loaded else { bail!("full: a network with its weights is needed") };
        let weights = loaded.weights()?.tracked();
        loaded.build(&weights)?;
        let (shapes, own) = (weights.taken(), format!("{}.", loaded.config.architecture.classifier()));
        let mut params = Params::default();
        for (name, leaf) in weights.leaves() {
            // The network's own classifier is only there to be mapped from.
            let group =
                if is_statistic(&name) || name.starts_with(&own) { Group::Fixed } else { Group::Prompt };
            let values = leaf.without_autodiff().into_data().iter::<f32>().collect();
            params.push(format!("{PREFIX}{name}"), &shapes[&name], group, values, site.device);
        }
        Ok(params)
    }

    fn prompts(&self, _site: &Site<'_>, _params: &Params) -> Prompts {
        Prompts::default()
    }

    fn weights(&self, _site: &Site<'_>, params: &Params) -> Result<Vec<NamedTensor>> {
        let own = params.to_named().into_iter().filter_map(|t| {
            let name = t.name.strip_prefix(PREFIX)?.to_owned();
            Some(NamedTensor { name, ..t })
        });
        Ok(own.collect())
    }

    fn training_network(
        &self,
        loaded: &Loaded,
        leaves: &Params,
        training: &Training,
    ) -> Result<Option<Arc<dyn Backbone>>> {
        let named = leaves.iter().filter_map(|p| Some((p.name.strip_prefix(PREFIX)?, p)));
        let tensors: BTreeMap<String, Tensor<1>> =
            named.map(|(name, p)| (name.to_owned(), p.value.clone())).collect();
        let mut weights = Weights::from_tensors(tensors, &loaded.device);
        if self.batch_statistics {
            weights = weights.training(training.clone());
        }
        loaded.build(&weights).map(Some)
    }
}

/// Put what the batch norms have seen in the place of their running statistics.
pub(crate) fn store_statistics(params: &mut Params, training: &Training) {
    let mut seen = training.statistics();
    for param in params.iter_mut().filter(|p| p.group == Group::Fixed) {
        if let Some(value) = param.name.strip_prefix(PREFIX).and_then(|name| seen.remove(name)) {
            param.value = value;
        }
    }
}
