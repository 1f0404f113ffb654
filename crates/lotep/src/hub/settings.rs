//! What the environment says about the hub.

use std::path::PathBuf;

use crate::{Error, Result, bail, input_error};

/// Where the hub and its cache are.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    /// The cache's directory.
    pub cache: PathBuf,
    /// Who asks; sent to the hub only, not where it redirects to.
    pub token: Option<String>,
    /// Ask nobody: only the cache serves.
    pub offline: bool,
}

/// All variables that are read.
const VARIABLES: [&str; 11] = [
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "HUGGINGFACE_HUB_CACHE",
    "HUGGING_FACE_HUB_TOKEN",
    "TRANSFORMERS_OFFLINE",
    "XDG_CACHE_HOME",
];

impl Settings {
    /// Read the environment's variables.
    ///
    /// # Errors
    /// One has a value that makes no sense, or none says where the cache is.
    pub fn from_env() -> Result<Self> {
        for name in VARIABLES {
            if let Err(std::env::VarError::NotUnicode(_)) = std::env::var(name) {
                bail!("{name} is not UTF-8");
            }
        }
        Self::new(|name| std::env::var(name).ok())
    }

    fn new(set: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let variable = |name: &str| set(name).filter(|value| !value.is_empty());
        let path = |name: &str| {
            variable(name).map(|value| {
                let value = match (value.strip_prefix('~'), std::env::home_dir()) {
                    (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
                        format!("{}{rest}", home.display())
                    }
                    _ => value,
                };
                PathBuf::from(expanded(&value, &set))
            })
        };
        let endpoint = variable("HF_ENDPOINT").unwrap_or("https://huggingface.co".into());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            bail!("HF_ENDPOINT is `{endpoint}`: an address is expected, as https://huggingface.co");
        }
        let home = path("HF_HOME").or_else(|| {
            let cache = path("XDG_CACHE_HOME").or_else(|| Some(std::env::home_dir()?.join(".cache")));
            Some(cache?.join("huggingface"))
        });
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.or_else(|| Some(home.as_ref()?.join("hub"))).ok_or_else(|| {
            input_error!("there is no home directory for downloads: say with HF_HOME where to keep them")
        })?;
        let yes = |name: &str| {
            variable(name)
                .is_some_and(|v| matches!(v.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
        };
        let file = path("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")));
        let token = match variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")) {
            _ if yes("HF_HUB_DISABLE_IMPLICIT_TOKEN") => None,
            Some(token) => Some(token),
            None => match file.filter(|f| f.is_file()) {
                Some(file) => Some(std::fs::read_to_string(&file).map_err(Error::io("read", &file))?),
                None => None,
            },
        };
        let token = token.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
        if token.as_ref().is_some_and(|t| !t.bytes().all(|b| b.is_ascii_graphic())) {
            bail!("the hub's token (HF_TOKEN or its file) has characters that no token has");
        }
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(|n| variable(n).is_some());
        Ok(Self { endpoint, cache, token, offline: offline.is_some_and(yes) })
    }
}

/// A text with `$NAME` and `${NAME}` replaced by the variables' values; what is not set stays as it is (Python's
/// `os.path.expandvars`).
fn expanded(text: &str, set: impl Fn(&str) -> Option<String>) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let braced = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let plain = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
        let (name, behind) = braced.unwrap_or(after.split_at(plain));
        if let Some(value) = set(name).filter(|_| !name.is_empty()) {
            out.push_str(&value);
        } else {
            out.push('$');
            out.push_str(&after[..after.len() - behind.len()]);
        }
        rest = behind;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Python 3.11's `os.path.expandvars` says.
    #[test]
    fn variables_in_paths_are_expanded() {
        let set = |name: &str| match name {
            "A" => Some("/a".to_owned()),
            "B_1" => Some("$A".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, expected) in [
            ("/plain", "/plain"),
            ("$A/b", "/a/b"),
            ("${A}b", "/ab"),
            ("$Ab", "$Ab"),
            ("x$B_1/$A", "x$A//a"),
            ("$EMPTY/x$", "/x$"),
            ("${A", "${A"),
            ("${}$/$$A", "${}$/$/a"),
            ("${N O}/$NOT", "${N O}/$NOT"),
        ] {
            assert_eq!(expanded(text, set), expected, "{text}");
        }
    }

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        Settings::new(find)
    }

    #[test]
    fn variables_mean_what_they_mean_to_python() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        let s = settings(&[("HF_HOME", home)]).unwrap();
        assert_eq!((s.endpoint.as_str(), s.offline, s.token), ("https://huggingface.co", false, None));
        assert_eq!(s.cache, dir.path().join("hub"));
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(settings(&[("HF_HOME", home)]).unwrap().token.as_deref(), Some("hf_file"));
        let quiet = [("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")];
        assert_eq!(settings(&quiet).unwrap().token, None);
        let all = [
            ("HF_HOME", home),
            ("HF_TOKEN", " hf_given "),
            ("HF_HUB_CACHE", "/c"),
            ("HF_HUB_OFFLINE", "true"),
            ("HF_ENDPOINT", "http://mirror/"),
        ];
        let s = settings(&all).unwrap();
        assert_eq!(
            (s.endpoint.as_str(), s.offline, s.token.as_deref()),
            ("http://mirror", true, Some("hf_given"))
        );
        assert_eq!(s.cache, PathBuf::from("/c"));
        let nested = [("HF_HOME", "$ROOT/hf"), ("ROOT", home)];
        assert_eq!(settings(&nested).unwrap().cache, dir.path().join("hf/hub"));
        let own = [("HF_HOME", home), ("HF_HUB_CACHE", "${HF_HOME}/c"), ("HF_TOKEN_PATH", "$HF_HOME/token")];
        let s = settings(&own).unwrap();
        assert_eq!((s.cache, s.token.as_deref()), (dir.path().join("c"), Some("hf_file")));
        let off = [("HF_HOME", "~/hf"), ("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")];
        let s = settings(&off).unwrap();
        assert!(!s.offline && s.cache.is_absolute() && s.cache.ends_with("hf/hub"), "{s:?}");
        for (name, value) in [("HF_ENDPOINT", "huggingface.co"), ("HF_TOKEN", "a\nb")] {
            let error = settings(&[("HF_HOME", home), (name, value)]).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
