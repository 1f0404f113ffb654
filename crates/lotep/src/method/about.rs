//! What there is to know of each method, for people who choose one.

use serde::Serialize;

/// A method in a few words.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct About {
    /// Its name.
    pub name: &'static str,
    /// Where it acts.
    pub acts: &'static str,
    /// What it learns beside the classifier: images `[3, H, W]`, blocks l with `[C, Hₗ, Wₗ]` at their entrance.
    pub parameters: &'static str,
    /// What a prediction costs over the plain network's.
    pub cost: &'static str,
    /// Where it was published.
    pub source: &'static str,
    /// Whether it needs CLIP with both towers.
    pub clip: bool,
}

const IMAGE: &str = "nothing to speak of: added as pixels are normalised, on a ViT folded";
const BLOCKS: &str = "an addition a prompted block, but for a ViT's first";

const TOKENS: &str = "n more tokens; the texts are encoded once";

/// Every method, in the order of [`MethodConfig::NAMES`](super::MethodConfig::NAMES).
pub const METHODS: [About; super::MethodConfig::NAMES.len()] = [
    About {
        name: "linear-probe",
        acts: "nowhere: a new classifier of the pooled features, which are computed once",
        parameters: "0",
        cost: "nothing",
        source: "",
        clip: false,
    },
    About {
        name: "full",
        acts: "everywhere: all weights of the network are learnt",
        parameters: "all of the network's",
        cost: "nothing",
        source: "",
        clip: false,
    },
    About {
        name: "lora",
        acts: "added to the weights of layers chosen by --targets, a product of thin matrices each",
        parameters: "Σ r (in + out), r = 8",
        cost: "nothing: merged into the weights",
        source: "LoRA (Hu et al., ICLR 2022)",
        clip: false,
    },
    About {
        name: "lor-vp",
        acts: "added to the image, a product of thin matrices for each colour",
        parameters: "3 r (H + W), r = 4",
        cost: IMAGE,
        source: "LoR-VP (Jin et al., ICLR 2025)",
        clip: false,
    },
    About {
        name: "border",
        acts: "a border p pixels wide, added over the image's edge; the first source classes speak (--mapping)",
        parameters: "6 p (H + W − 2 p), p = 30",
        cost: IMAGE,
        source: "Bahng et al., 2022",
        clip: false,
    },
    About {
        name: "ilm-vp",
        acts: "the image, made s × s, in a frame of learnt pixels; source classes are matched anew each epoch",
        parameters: "3 (H W − s²), s = 128; no classifier",
        cost: IMAGE,
        source: "ILM-VP (Chen et al., CVPR 2023)",
        clip: false,
    },
    About {
        name: "auto-vp",
        acts: "the same with a learnt scale of the image; a classifier of the source classes' scores",
        parameters: "3 (H W − s²) + 1, s = 128",
        cost: "scaling the image",
        source: "AutoVP (Tsao et al., ICLR 2024)",
        clip: false,
    },
    About {
        name: "lotep-cp",
        acts: "added to the image and to the entrance of the first blocks, a CP tensor each",
        parameters: "Σ rₗ (C + Hₗ + Wₗ), r = 6 falling to 1",
        cost: BLOCKS,
        source: "LoTeP, eq. 7 and 8",
        clip: false,
    },
    About {
        name: "lotep-tk",
        acts: "the same, a Tucker tensor each",
        parameters: "Σ rₗ (C + Hₗ + Wₗ) + rₗ³, r = 6 falling to 1",
        cost: BLOCKS,
        source: "LoTeP, eq. 5 and 8",
        clip: false,
    },
    About {
        name: "naive-deep",
        acts: "the same places, a full map for each channel",
        parameters: "Σ C Hₗ Wₗ",
        cost: BLOCKS,
        source: "LoTeP, reference baseline",
        clip: false,
    },
    About {
        name: "grouped",
        acts: "the same places, a map for each of g groups of successive channels, full or a product",
        parameters: "Σ g Hₗ Wₗ, or Σ g r (Hₗ + Wₗ); g = 8",
        cost: BLOCKS,
        source: "LoTeP, reference baseline",
        clip: false,
    },
    About {
        name: "deep-lor-vp",
        acts: "the same places, a product of thin matrices for each channel",
        parameters: "Σ C r (Hₗ + Wₗ), r = 4",
        cost: BLOCKS,
        source: "LoTeP, reference baseline",
        clip: false,
    },
    About {
        name: "vpt-shallow",
        acts: "n tokens among those of a ViT's first block, or in every window of a Swin's",
        parameters: "n C, n = 10",
        cost: "n more tokens",
        source: "VPT (Jia et al., ECCV 2022)",
        clip: false,
    },
    About {
        name: "vpt-deep",
        acts: "n tokens among those of each of a ViT's L blocks, or in every window of a Swin's; --fourier for VFPT's",
        parameters: "Σ n Cₗ, n = 10",
        cost: "n more tokens",
        source: "VPT (Jia et al., ECCV 2022), VFPT",
        clip: false,
    },
    About {
        name: "vpt-pad",
        acts: "p pixels around the image, which a ResNet or a ConvNeXt sees as a larger one",
        parameters: "6 p (H + W + 2 p), p = 16",
        cost: "a larger image",
        source: "VPT (Jia et al., ECCV 2022), on convolutional networks",
        clip: false,
    },
    About {
        name: "vpt-below",
        acts: "n channels beside the image's colours, with a drawn slice of the first kernel of a ResNet or a ConvNeXt",
        parameters: "n H W, n = 1",
        cost: "the first convolution, in its plain form",
        source: "VPT (Jia et al., ECCV 2022), on convolutional networks",
        clip: false,
    },
    About {
        name: "e2vpt",
        acts: "P tokens among those of each of a ViT's or a Swin's L blocks, m keys and values in each attention; `lotep prune`",
        parameters: "Σ Cₗ (P + m), P = 10, m = 5, less what is pruned",
        cost: "P more tokens, P + m more keys",
        source: "E²VPT (Han et al., ICCV 2023)",
        clip: false,
    },
    About {
        name: "zero-shot",
        acts: "nowhere: a sentence about each class is compared with the image",
        parameters: "0",
        cost: "nothing: the sentences are encoded once",
        source: "CLIP (Radford et al., ICML 2021)",
        clip: true,
    },
    About {
        name: "coop",
        acts: "n words in front of each class's name",
        parameters: "n C, n = 16, C the text tower's width",
        cost: "nothing",
        source: "CoOp (Zhou et al., IJCV 2022)",
        clip: true,
    },
    About {
        name: "cocoop",
        acts: "the same, moved for each image by a small network that sees its features",
        parameters: "n C + F F/16 + F/16 + F/16 C + C, n = 4, F features",
        cost: "the text tower, for every image and class",
        source: "CoCoOp (Zhou et al., CVPR 2022)",
        clip: true,
    },
    About {
        name: "ivlp",
        acts: "n words and n tokens in each of the first d blocks of both towers",
        parameters: "d n (C + C'), d = 9, n = 4, C and C' the towers' widths",
        cost: TOKENS,
        source: "PromptSRC's baseline (Khattak et al., ICCV 2023)",
        clip: true,
    },
    About {
        name: "maple",
        acts: "the same, the image tower's tokens made of the words by a layer each",
        parameters: "d n C + d (C C' + C'), d = 9, n = 2",
        cost: TOKENS,
        source: "MaPLe (Khattak et al., CVPR 2023)",
        clip: true,
    },
    About {
        name: "promptsrc",
        acts: "as ivlp, held to what the frozen towers say, averaged over epochs",
        parameters: "d n (C + C'), d = 9, n = 4",
        cost: TOKENS,
        source: "PromptSRC (Khattak et al., ICCV 2023)",
        clip: true,
    },
    About {
        name: "mmlop",
        acts: "the same places, a product of rank r each that both towers share a factor of, with drift correction",
        parameters: "d r (n + C + C'), d = 9, n = 4, r = 1",
        cost: TOKENS,
        source: "MMLoP (2026)",
        clip: true,
    },
    About {
        name: "clip-lora",
        acts: "added to the queries, keys and values of all blocks of both towers, a product of thin matrices each",
        parameters: "Σ 6 r C over the blocks, r = 2",
        cost: "nothing: merged into the weights",
        source: "CLIP-LoRA (Zanella and Ben Ayed, CVPR workshops 2024)",
        clip: true,
    },
];

#[cfg(test)]
mod tests {
    use super::super::MethodConfig;
    use super::*;

    #[test]
    fn every_method_has_its_line() {
        assert_eq!(METHODS.map(|m| m.name), MethodConfig::NAMES);
    }
}
