//! Sentences that class names are put into.

use crate::{Result, bail};

/// Stands for the class's name.
const NAME: &str = "{}";

/// What is said of a class where nothing else is asked for.
pub const PLAIN: &str = "a photo of a {}.";

/// A class's name as words: folders write spaces as underscores.
pub fn words(name: &str) -> String {
    name.replace('_', " ")
}

/// Put a class's name into a template.
pub fn fill(template: &str, name: &str) -> String {
    template.replace(NAME, &words(name))
}

/// Check that a template has a place for the name.
///
/// # Errors
/// It has none.
pub fn check(template: &str) -> Result<()> {
    if !template.contains(NAME) {
        bail!("template `{template}` has no {NAME}, where the class's name goes: {PLAIN} is one");
    }
    Ok(())
}

/// Check names that texts are made of.
///
/// # Errors
/// There are fewer than two, one is empty, or one comes twice.
pub fn check_names(names: &[String]) -> Result<()> {
    if names.len() < 2 {
        bail!("{} class has nothing to be told from: two names at least are expected", names.len());
    }
    let mut seen = std::collections::BTreeSet::new();
    for (i, name) in names.iter().enumerate() {
        let words = words(name).trim().to_lowercase();
        if words.is_empty() {
            bail!("class {} has an empty name: its text would say nothing", i + 1);
        }
        if !seen.insert(words) {
            bail!("class `{name}` comes twice: its texts would be the same");
        }
    }
    Ok(())
}

/// Of a photograph: how it is, and whether it is said of "a" and of "the" thing.
const PHOTOGRAPHS: [(&str, &str); 12] = [
    ("", "a the"),
    ("bad ", "a the"),
    ("low resolution ", "a the"),
    ("cropped ", "a the"),
    ("bright ", "a the"),
    ("dark ", "the"),
    ("close-up ", "a the"),
    ("black and white ", "the"),
    ("pixelated ", "a the"),
    ("jpeg corrupted ", "a"),
    ("blurry ", "a the"),
    ("good ", "the"),
];

/// What is photographed is itself so.
const THINGS: [&str; 13] = [
    "many",
    "one",
    "my",
    "a hard to see",
    "the hard to see",
    "a clean",
    "the clean",
    "a dirty",
    "the dirty",
    "the cool",
    "a large",
    "a nice",
    "a weird",
];

/// Other pictures, likewise.
const PICTURES: [(&str, &str); 11] = [
    ("a sculpture of", "a the"),
    ("a rendering of", "a the"),
    ("a tattoo of", "a"),
    ("a drawing of", "a"),
    ("a painting of", "a the"),
    ("a doodle of", "a the"),
    ("a sketch of", "a the"),
    ("a rendition of", "a the"),
    ("graffiti of", "a"),
    ("art of", "a"),
    ("itap of", "the"),
];

/// Things that are made of something else.
const MADE: [(&str, &str); 5] =
    [("embroidered", "a the"), ("plastic", "a the"), ("origami", "a the"), ("toy", "the"), ("cartoon", "a")];

/// The sixty sentences whose mean feature PromptSRC and MMLoP hold their prompts to: three quarters of those that CLIP's
/// authors tried on ImageNet, here put together from their parts, in no particular order.
pub fn sixty() -> Vec<String> {
    let mut all = Vec::with_capacity(60);
    for (how, articles) in PHOTOGRAPHS {
        all.extend(articles.split(' ').map(|article| format!("a {how}photo of {article} {NAME}.")));
    }
    all.extend(THINGS.map(|what| format!("a photo of {what} {NAME}.")));
    for (what, articles) in PICTURES {
        all.extend(articles.split(' ').map(|article| format!("{what} {article} {NAME}.")));
    }
    for (how, articles) in MADE {
        all.extend(articles.split(' ').map(|article| format!("{article} {how} {NAME}.")));
    }
    all.extend(["a", "the"].map(|article| format!("{article} {NAME} in a video game.")));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixty_different_sentences() {
        let all = sixty();
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!((all.len(), different.len()), (60, 60));
        assert_eq!(all[0], PLAIN);
        assert!(all.iter().all(|t| check(t).is_ok() && t.ends_with('.') && !t.contains("  ")));
        for sentence in
            ["a jpeg corrupted photo of a {}.", "itap of the {}.", "the toy {}.", "a {} in a video game."]
        {
            assert!(all.iter().any(|t| t == sentence), "{sentence}");
        }
        assert_eq!(fill("the {}!", "sports_car"), "the sports car!");
    }

    #[test]
    fn names_that_say_nothing_are_refused() {
        let refused = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            check_names(&names).unwrap_err().to_string()
        };
        assert!(refused(&["a"]).contains("two names"));
        assert!(refused(&["a", "_ "]).contains("class 2 has an empty name"));
        assert!(refused(&["A b", "a_b"]).contains("`a_b` comes twice"));
        assert!(check("a photo").unwrap_err().to_string().contains("has no {}"));
    }
}
