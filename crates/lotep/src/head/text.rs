//! Class names as a classifier: CLIP's cosines between an image's features and those of texts about each class.

use std::sync::Arc;

use burn::tensor::Tensor;

use crate::backbone::{Hooks, Loaded, NoHooks, TextTower};
use crate::method::TextPlan;
use crate::text::templates;
use crate::{Result, bail};

/// Texts that go through a frozen tower together.
const TOGETHER: usize = 64;

/// The texts about the classes of a task, ready for a method's prompts.
pub struct ClassTexts {
    tower: TextTower,
    plan: TextPlan,
    classes: usize,
    /// The plan's texts, class by class, embedded: `[classes · templates, length, C]`.
    embedded: Tensor<3>,
    ends: Vec<usize>,
    /// What the frozen tower says of each class, `[classes, F]`, normalised; where the plan asks for it.
    frozen: Option<Tensor<2>>,
    /// What cosines are multiplied by.
    scale: f32,
}

/// Rows of length one, `[n, F]`.
pub(crate) fn unit(x: Tensor<2>) -> Tensor<2> {
    x.clone() / x.square().sum_dim(1).sqrt()
}

impl ClassTexts {
    /// Encode what `plan` says of each of `names`.
    ///
    /// # Errors
    /// The network has no text tower or vocabulary; a name is empty or comes twice; a template has no place for it; a text
    /// is too long, or has a piece that is in no vocabulary.
    pub fn new(loaded: &Loaded, plan: TextPlan, names: &[String]) -> Result<Self> {
        let words = loaded.words()?;
        if loaded.network.head().is_none_or(|head| head.dims()[1] != words.config.features) {
            bail!(
                "the image tower of {} has no projection to the text tower's {} features",
                loaded.config.name,
                words.config.features
            );
        }
        templates::check_names(names)?;
        if plan.templates.is_empty() {
            bail!("no template: {} is one", templates::PLAIN);
        }
        let texts = |templates: &[String]| -> Result<Vec<Vec<u32>>> {
            templates.iter().try_for_each(|template| templates::check(template))?;
            let each = |name: &String| templates.iter().map(|t| templates::fill(t, name)).collect::<Vec<_>>();
            words.encode(&names.iter().flat_map(each).collect::<Vec<_>>())
        };
        let own = texts(&plan.templates)?;
        if plan.replaced > 0 {
            let before = plan.templates[0].split("{}").next().unwrap_or_default();
            let there = words.tokenizer()?.words(before)?.len();
            if plan.replaced > there {
                bail!(
                    "{} tokens are learnt, but `{before}` has {there} before the class's name",
                    plan.replaced
                );
            }
        }
        let sixty = if plan.needs_frozen() { texts(&templates::sixty())? } else { Vec::new() };
        let length = own.iter().chain(&sixty).map(Vec::len).max().unwrap_or(0);
        let tower = loaded.text_tower(length)?;
        let classes = names.len();
        // Their mean is taken before it is normalised, unlike that of CLIP's own ensembles.
        let frozen = plan.needs_frozen().then(|| unit(means(features(&tower, &sixty, &NoHooks), classes)));
        let embedded = tower.embed(&own);
        let ends = own.iter().map(|text| text.len() - 1).collect();
        Ok(Self { tower, plan, classes, embedded, ends, frozen, scale: words.scale })
    }

    /// What the method asks for.
    pub(crate) fn plan(&self) -> &TextPlan {
        &self.plan
    }

    /// What the frozen tower says of each class.
    pub(crate) fn frozen(&self) -> Option<&Tensor<2>> {
        self.frozen.as_ref()
    }

    /// Number of texts.
    pub(crate) fn texts(&self) -> usize {
        self.ends.len()
    }

    /// Features `[count, F]` of texts from number `first` on, prompted by `hooks`; not normalised.
    pub(crate) fn raw(&self, hooks: &dyn Hooks, first: usize, count: usize) -> Tensor<2> {
        let x = self.embedded.clone().narrow(0, first, count);
        self.tower.features(x, &self.ends[first..first + count], hooks)
    }

    /// The same of all, outside autodiff, a few at a time.
    pub(crate) fn all_raw(&self, hooks: &dyn Hooks) -> Tensor<2> {
        let parts = (0..self.texts()).step_by(TOGETHER);
        let raw =
            |first: usize| self.raw(hooks, first, TOGETHER.min(self.texts() - first)).without_autodiff();
        Tensor::cat(parts.map(raw).collect(), 0)
    }

    /// Each class's vector `[classes, F]`, of length one, from the features of its texts.
    ///
    /// Several texts of a class are averaged as CLIP does it. With drift correction what all classes' vectors moved by
    /// together is taken back: `t − mean(t − z)`, normalised again (MMLoP, `spec/methods.md` 11.3).
    pub(crate) fn vectors(&self, raw: Tensor<2>) -> Tensor<2> {
        let mut t = unit(raw);
        if self.plan.templates.len() > 1 {
            t = unit(means(t, self.classes));
        }
        match &self.frozen {
            Some(z) if self.plan.drift_correction => unit(t.clone() - (t - z.clone()).mean_dim(0)),
            _ => t,
        }
    }

    /// Vectors `[B, classes, F]` of length one where each image has words `[B, n, C]` of its own.
    pub(crate) fn conditioned(&self, words: Tensor<3>) -> Tensor<3> {
        struct Words(Tensor<3>);
        impl Hooks for Words {
            fn words(&self, block: usize) -> Option<Tensor<3>> {
                (block == 0).then(|| self.0.clone())
            }
        }
        let ([images, count, width], classes) = (words.dims(), self.classes);
        let each = words.unsqueeze_dim::<4>(1).expand([images, classes, count, width]);
        let hooks = Words(each.reshape([images * classes, count, width]));
        let x = self.embedded.clone().repeat_dim(0, images);
        let ends = self.ends.repeat(images);
        let raw = unit(self.tower.features(x, &ends, &hooks));
        let features = raw.dims()[1];
        raw.reshape([images, classes, features])
    }

    /// Scores `[B, classes]` of images `[B, F]` of length one.
    pub(crate) fn logits(&self, images: Tensor<2>, vectors: Tensor<2>) -> Tensor<2> {
        images.matmul(vectors.transpose()) * self.scale
    }

    /// The same with each image's own vectors `[B, classes, F]`.
    pub(crate) fn own_logits(&self, images: Tensor<2>, vectors: Tensor<3>) -> Tensor<2> {
        vectors.matmul(images.unsqueeze_dim(2)).squeeze_dim::<2>(2) * self.scale
    }
}

/// Texts and their plan, shared by whoever scores the same classes.
pub type SharedTexts = Arc<ClassTexts>;

/// Features of texts of a frozen tower, a few at a time.
fn features(tower: &TextTower, texts: &[Vec<u32>], hooks: &dyn Hooks) -> Tensor<2> {
    let part = |texts: &[Vec<u32>]| {
        let ends: Vec<usize> = texts.iter().map(|text| text.len() - 1).collect();
        tower.features(tower.embed(texts), &ends, hooks)
    };
    Tensor::cat(texts.chunks(TOGETHER).map(part).collect(), 0)
}

/// The mean of each class's rows, which follow each other.
fn means(x: Tensor<2>, classes: usize) -> Tensor<2> {
    let [rows, width] = x.dims();
    x.reshape([classes, rows / classes, width]).mean_dim(1).squeeze_dim(1)
}
