//! Class names as a classifier: CLIP's cosines between an image's features and those of texts about each class.

use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;

use super::text_cache::{self, TextCache};
use crate::backbone::{Hooks, Loaded, NoHooks, TextTower};
use crate::method::{Prompts, TextPlan};
use crate::text::templates;
use crate::{Result, bail};

/// Texts that go through a frozen tower together.
const TOGETHER: usize = 64;

/// The texts about the classes of a task, ready for a method's prompts.
pub struct ClassTexts {
    plan: TextPlan,
    classes: usize,
    /// Number of the plan's texts.
    count: usize,
    said: Said,
    /// What the frozen tower says of each class, `[classes, F]`, normalised; where the plan asks for it.
    frozen: Option<Tensor<2>>,
    /// What cosines are multiplied by.
    scale: f32,
    warnings: Vec<String>,
}

/// What the tower says of the plan's texts.
enum Said {
    /// Always the same: each class's vector `[classes, F]`, of length one.
    Same(Tensor<2>),
    /// What a method makes of it.
    Prompted(Box<Prompted>),
}

/// A tower and the texts for it.
struct Prompted {
    tower: TextTower,
    /// Its portable form, which alone knows dropout inside, once that was asked for.
    portable: OnceLock<TextTower>,
    /// The plan's texts, class by class, embedded: `[classes · templates, length, C]`.
    embedded: Tensor<3>,
    ends: Vec<usize>,
}

/// Rows of length one, `[n, F]`.
pub(crate) fn unit(x: Tensor<2>) -> Tensor<2> {
    x.clone() / x.square().sum_dim(1).sqrt()
}

/// The tokens of what is said of classes, class by class: of the plan's sentences, and of the sixty that the frozen tower
/// is asked for.
struct Sentences {
    own: Vec<Vec<u32>>,
    sixty: Vec<Vec<u32>>,
}

impl Sentences {
    fn new(loaded: &Loaded, plan: &TextPlan, names: &[String]) -> Result<Self> {
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
        Ok(Self { own, sixty })
    }
}

impl ClassTexts {
    /// Find what [`new`](Self::new) would refuse, without the tower.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn check(loaded: &Loaded, plan: &TextPlan, names: &[String]) -> Result<()> {
        Sentences::new(loaded, plan, names).map(drop)
    }

    /// Encode what `plan` says of each of `names`.
    ///
    /// # Errors
    /// The network has no text tower or vocabulary; a name is empty or comes twice; a template has no place for it; a text
    /// is too long, or has a piece that is in no vocabulary.
    pub fn new(loaded: &Loaded, plan: TextPlan, names: &[String]) -> Result<Self> {
        let Sentences { own, sixty } = Sentences::new(loaded, &plan, names)?;
        let length = own.iter().chain(&sixty).map(Vec::len).max().unwrap_or(0);
        let (classes, count) = (names.len(), own.len());
        let config = &loaded.words()?.config;
        let (shape, scale) = ([classes, config.features], loaded.words()?.scale);
        let (mut tower, mut cache) = (None, TextCache::of_user());
        // What nothing learnt changes may be known from before; the tower is then not even built.
        let mut known = |how: &str, texts: &[Vec<u32>], make: &dyn Fn(Tensor<2>) -> Tensor<2>| {
            let key = text_cache::key(loaded, how, length, texts);
            cache.get(key, texts.len(), shape, &loaded.device, || {
                Ok(make(features(built(&mut tower, loaded, length)?, texts)))
            })
        };
        // The sixty's mean is taken before it is normalised, unlike that of CLIP's own ensembles.
        let mut held = || known("the mean's direction", &sixty, &|raw| unit(means(raw, classes)));
        let frozen = if plan.needs_frozen() { Some(held()?) } else { None };
        let said = if plan.is_learnt() {
            let tower = match tower {
                Some(tower) => tower,
                None => loaded.text_tower(length)?,
            };
            let ends = own.iter().map(|text| text.len() - 1).collect();
            let embedded = tower.embed(&own);
            Said::Prompted(Box::new(Prompted { tower, portable: OnceLock::new(), embedded, ends }))
        } else {
            Said::Same(known("the directions' mean", &own, &|raw| directions(raw, classes))?)
        };
        Ok(Self { plan, classes, count, said, frozen, scale, warnings: cache.warnings })
    }

    /// What went wrong beside the way: vectors that could not be kept, or not be read.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
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
        self.count
    }

    /// Each class's vector, where nothing learnt changes it.
    pub(crate) fn same(&self) -> Option<&Tensor<2>> {
        match &self.said {
            Said::Same(vectors) => Some(vectors),
            Said::Prompted(_) => None,
        }
    }

    fn prompted(&self) -> &Prompted {
        match &self.said {
            Said::Prompted(prompted) => prompted,
            Said::Same(_) => unreachable!("texts that nothing changes are not prompted"),
        }
    }

    /// Make ready what knows dropout inside the tower. It is made once.
    ///
    /// # Errors
    /// The weights can no longer be read.
    pub(crate) fn unpack(&self, loaded: &Loaded) -> Result<()> {
        let Prompted { tower, portable, .. } = self.prompted();
        if portable.get().is_none() {
            // If somebody else was faster, theirs is the same.
            _ = portable.set(loaded.unpacked_text_tower(tower.length())?);
        }
        Ok(())
    }

    /// Features `[count, F]` of texts from number `first` on, prompted by `hooks`; not normalised. With dropout inside, the
    /// tower is to be [unpacked](Self::unpack) before.
    pub(crate) fn raw(&self, hooks: &dyn Hooks, first: usize, count: usize) -> Tensor<2> {
        let Prompted { tower, portable, embedded, ends } = self.prompted();
        let tower = portable.get().filter(|_| hooks.dropout().is_some()).unwrap_or(tower);
        let x = embedded.clone().narrow(0, first, count);
        tower.features(x, &ends[first..first + count], hooks)
    }

    /// The same of all, outside autodiff, a few at a time; `hooks` are those for texts from a number on.
    pub(crate) fn all_raw<H: Hooks>(&self, hooks: impl Fn(usize) -> H) -> Tensor<2> {
        let parts = (0..self.count).step_by(TOGETHER);
        let raw = |first: usize| {
            self.raw(&hooks(first), first, TOGETHER.min(self.count - first)).without_autodiff()
        };
        Tensor::cat(parts.map(raw).collect(), 0)
    }

    /// Each class's vector `[classes, F]`, of length one, from the features of its texts.
    ///
    /// Several texts of a class are averaged as CLIP does it. With drift correction what all classes' vectors moved by
    /// together is taken back: `t − mean(t − z)`, normalised again (MMLoP, `spec/methods.md` 11.3).
    pub(crate) fn vectors(&self, raw: Tensor<2>) -> Tensor<2> {
        let t = directions(raw, self.classes);
        match &self.frozen {
            Some(z) if self.plan.drift_correction => unit(t.clone() - (t - z.clone()).mean_dim(0)),
            _ => t,
        }
    }

    /// The same of texts that `prompts` prompt, outside autodiff.
    pub(crate) fn prompted_vectors(&self, prompts: &Prompts) -> Tensor<2> {
        match &self.said {
            Said::Same(vectors) => vectors.clone(),
            Said::Prompted(_) => self.vectors(self.all_raw(|_| prompts.clone())),
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
        let Prompted { tower, embedded, ends, .. } = self.prompted();
        let ([images, count, width], classes) = (words.dims(), self.classes);
        let each = words.unsqueeze_dim::<4>(1).expand([images, classes, count, width]);
        let hooks = Words(each.reshape([images * classes, count, width]));
        let x = embedded.clone().repeat_dim(0, images);
        let raw = unit(tower.features(x, &ends.repeat(images), &hooks));
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

/// The frozen tower, built when it is first asked for.
fn built<'a>(tower: &'a mut Option<TextTower>, loaded: &Loaded, length: usize) -> Result<&'a TextTower> {
    match tower {
        Some(tower) => Ok(tower),
        None => Ok(tower.insert(loaded.text_tower(length)?)),
    }
}

/// Features of texts of a frozen tower, a few at a time.
fn features(tower: &TextTower, texts: &[Vec<u32>]) -> Tensor<2> {
    let part = |texts: &[Vec<u32>]| {
        let ends: Vec<usize> = texts.iter().map(|text| text.len() - 1).collect();
        tower.features(tower.embed(texts), &ends, &NoHooks)
    };
    Tensor::cat(texts.chunks(TOGETHER).map(part).collect(), 0)
}

/// Each class's vector of length one: the mean of its texts' directions.
fn directions(raw: Tensor<2>, classes: usize) -> Tensor<2> {
    let t = unit(raw);
    if t.dims()[0] > classes { unit(means(t, classes)) } else { t }
}

/// The mean of each class's rows, which follow each other.
fn means(x: Tensor<2>, classes: usize) -> Tensor<2> {
    let [rows, width] = x.dims();
    x.reshape([classes, rows / classes, width]).mean_dim(1).squeeze_dim(1)
}
