//! Networks from the hub: downloads, the cache, and all that goes wrong on the way.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::common::{Case, Net, Ran, command, read_json, run, text, write_tensors};
use crate::files::write_file;
use crate::hub_server::{COMMIT, HubServer, etag};

const NAME: &str = "resnet18.tiny";
const WEIGHTS: &str = "model.safetensors";

/// The files of the tiny network.
fn files(case: &Case) -> BTreeMap<String, Vec<u8>> {
    let dir = case.backbone(Net::ResNet);
    ["config.json", WEIGHTS].map(|name| (name.to_owned(), fs::read(dir.join(name)).unwrap())).into()
}

struct Setting {
    case: Case,
    hub: HubServer,
    files: BTreeMap<String, Vec<u8>>,
}

impl Setting {
    fn new() -> Self {
        let case = Case::new();
        let files = files(&case);
        Self { hub: HubServer::new(files.clone()), case, files }
    }

    /// The repository's folder in the cache.
    fn folder(&self) -> PathBuf {
        self.case.path("hf/hub/models--timm--resnet18.tiny")
    }

    fn blob(&self, file: &str) -> PathBuf {
        self.folder().join("blobs").join(etag(&self.files[file]))
    }

    fn run(&self, args: &[&str], environment: &[(&str, &str)]) -> Ran {
        let mut command = command(args);
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "HF_HUB_CACHE"]
        {
            command.env_remove(name);
        }
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env_remove(name).env_remove(name.to_ascii_lowercase());
        }
        command.env("HF_HOME", self.case.path("hf")).env("HF_ENDPOINT", &self.hub.address);
        command.envs(environment.iter().copied());
        run(command)
    }

    fn inspect(&self, backbone: &str, environment: &[(&str, &str)]) -> Ran {
        self.run(&["inspect", "--backbone", backbone], environment)
    }
}

#[test]
fn a_network_is_downloaded_once() {
    let s = Setting::new();
    let token = [("HF_TOKEN", "hf_secret")];
    let ran = s.inspect(NAME, &token).done();
    assert!(ran.stderr.contains("downloading model.safetensors ("), "{ran}");
    // The layout is that of Python's library.
    assert_eq!(fs::read_to_string(s.folder().join("refs/main")).unwrap(), COMMIT);
    for (file, bytes) in &s.files {
        let link = s.folder().join("snapshots").join(COMMIT).join(file);
        assert_eq!(fs::read(&link).unwrap(), *bytes);
        if cfg!(unix) {
            let target = Path::new("../../blobs").join(etag(bytes));
            assert_eq!(fs::read_link(&link).unwrap(), target);
        }
    }
    // The hub knows who asks, the storage does not.
    let seen = s.hub.seen();
    assert!(seen.iter().any(|r| r.storage));
    for r in seen {
        let expected = (!r.storage).then(|| "Bearer hf_secret".to_owned());
        assert_eq!(r.authorization, expected, "{}", r.line);
    }
    // Then one question is enough: whether `main` is still that commit.
    s.inspect(NAME, &token).done();
    let lines: Vec<_> = s.hub.seen().into_iter().map(|r| r.line).collect();
    let asked = [&format!("timm/{NAME}/resolve/main"), "api/resolve-cache"];
    assert_eq!(lines, asked.map(|where_| format!("HEAD /{where_}/config.json HTTP/1.1")));
    // None at all for a commit, or offline.
    s.inspect(&format!("{NAME}@{COMMIT}"), &[]).done();
    let offline = [("HF_HUB_OFFLINE", "1")];
    s.inspect(NAME, &offline).done();
    s.inspect(&format!("hf-hub:timm/{NAME}"), &offline).done();
    assert_eq!(s.hub.seen(), []);
    // A hub that went away is no reason to stop.
    let ran = s.inspect(NAME, &[("HF_ENDPOINT", "http://127.0.0.1:9")]).done();
    assert!(ran.stderr.contains("warning: http://127.0.0.1:9 can't be reached"), "{ran}");
    s.hub.manners().busy = usize::MAX;
    let ran = s.inspect(NAME, &[]).done();
    assert!(ran.stderr.contains("503") && ran.stderr.contains("cache"), "{ran}");
}

#[test]
fn an_adapter_remembers_the_commit() {
    let s = Setting::new();
    let images = s.case.images();
    let output = s.case.path("run");
    let train = ["train", "--backbone", NAME, "--data", text(&images), "--output", text(&output)];
    s.run(&[&train[..], &["--epochs", "1", "--method", "linear-probe"]].concat(), &[]).done();
    let adapter = output.join("adapter");
    let source = &read_json(&adapter.join("adapter_config.json"))["backbone"]["source"];
    assert_eq!(*source, json!(format!("hf-hub:timm/{NAME}@{COMMIT}")));
    s.hub.seen();
    s.run(&["eval", "--adapter", text(&adapter), "--data", text(&images)], &[]).done();
    assert_eq!(s.hub.seen(), []);
}

#[test]
fn names_of_all_kinds() {
    let s = Setting::new();
    for name in ["resnet18.old", "resnet18.tiny@v1", "hf-hub:timm/resnet18.tiny@refs/pr/1"] {
        s.inspect(name, &[]).done();
    }
    assert_eq!(fs::read_to_string(s.folder().join("refs/refs/pr/1")).unwrap(), COMMIT);
    // One copy of each file is enough for all revisions.
    assert_eq!(fs::read_dir(s.folder().join("blobs")).unwrap().count(), 2);
}

#[test]
fn a_broken_download_goes_on_where_it_broke() {
    let s = Setting::new();
    s.hub.manners().breaks = 3;
    s.inspect(NAME, &[]).done();
    let ranges: Vec<_> = s.hub.seen().into_iter().filter(|r| r.storage).map(|r| r.range).collect();
    let size = s.files[WEIGHTS].len();
    let mut start = 0;
    for range in ranges {
        assert_eq!(range, (start > 0).then(|| format!("bytes={start}-")));
        start += (size - start) / 3;
    }
    assert_eq!(fs::read(s.blob(WEIGHTS)).unwrap(), s.files[WEIGHTS]);
    // One that never holds is given up.
    let s = Setting::new();
    s.hub.manners().breaks = usize::MAX;
    s.inspect(NAME, &[]).refused(&[WEIGHTS, "breaks off again and again"]);
    // What has arrived by then serves the next time, though this hub knows no ranges.
    *s.hub.manners() = crate::hub_server::Manners { no_ranges: true, ..Default::default() };
    s.inspect(NAME, &[]).done();
    assert_eq!(fs::read(s.blob(WEIGHTS)).unwrap(), s.files[WEIGHTS]);
}

#[test]
fn what_an_earlier_process_left_is_used_or_noticed() {
    for (beginning, warned) in [(&b"begin"[..], true), (&[][..], false)] {
        let s = Setting::new();
        let half = s.files[WEIGHTS].len() / 2;
        let mut part = s.files[WEIGHTS][..half].to_vec();
        part[..beginning.len()].copy_from_slice(beginning);
        write_file(&PathBuf::from(format!("{}.incomplete", s.blob(WEIGHTS).display())), &part);
        let ran = s.inspect(NAME, &[]).done();
        assert_eq!(ran.stderr.contains("is damaged: it is downloaded anew"), warned, "{ran}");
        let ranges: Vec<_> = s.hub.seen().into_iter().filter(|r| r.storage).map(|r| r.range).collect();
        let continued = Some(format!("bytes={half}-"));
        assert_eq!(ranges, if warned { vec![continued, None] } else { vec![continued] });
        assert_eq!(fs::read(s.blob(WEIGHTS)).unwrap(), s.files[WEIGHTS]);
    }
}

#[test]
fn a_wrong_hash_is_refused_and_leaves_nothing() {
    let s = Setting::new();
    s.hub.manners().damage = true;
    s.inspect(NAME, &[]).refused(&[WEIGHTS, "arrived damaged", &etag(&s.files[WEIGHTS])]);
    assert!(!s.folder().join("snapshots").join(COMMIT).join(WEIGHTS).exists());
    assert_eq!(fs::read_dir(s.folder().join("blobs")).unwrap().count(), 1);
    s.hub.manners().damage = false;
    s.inspect(NAME, &[]).done();
}

#[test]
fn refusals_say_what_to_do() {
    let s = Setting::new();
    s.inspect("resnet18.absent", &[]).refused(&["no repository timm/resnet18.absent", "HF_TOKEN"]);
    s.inspect("resnet18.tiny@v9", &[]).refused(&["timm/resnet18.tiny", "`v9`"]);
    s.inspect("resnet19.tiny", &[]).refused(&["no backbone at `resnet19.tiny`", "lotep backbones"]);
    s.inspect("timm/resnet18.tiny", &[]).refused(&["no backbone at", "hf-hub:owner/name"]);
    s.inspect("hf-hub:../x", &[]).refused(&["`../x` is not a repository's name"]);
    s.inspect(NAME, &[("HF_ENDPOINT", "ftp://hub")]).refused(&["HF_ENDPOINT", "ftp://hub"]);
    s.inspect(NAME, &[("HF_TOKEN", "two words")]).refused(&["HF_TOKEN"]);
    s.inspect(NAME, &[("HF_HUB_OFFLINE", "1")]).refused(&["config.json", "HF_HUB_OFFLINE"]);
    let gone = [("HF_ENDPOINT", "http://127.0.0.1:9")];
    s.inspect(NAME, &gone).refused(&["http://127.0.0.1:9 can't be reached", "is not in the cache"]);
    s.inspect("resnet18.pth", &[]).refused(&["resnet18.pth", "no such file"]);
    for (manner, words) in [
        (("GatedRepo", 403), ["is gated: accept its terms at", "HF_TOKEN"]),
        (("", 418), ["answers 418", "as the test wished"]),
    ] {
        s.hub.manners().refuse = Some(manner);
        s.inspect(NAME, &[]).refused(&words);
    }
    s.hub.manners().refuse = None;
    s.hub.manners().circle = true;
    s.inspect(NAME, &[]).refused(&["redirects without end"]);
    s.hub.manners().circle = false;
    // What goes into the names of files is looked at first.
    for header in [
        ("X-Repo-Commit", "../../../../x"),
        ("X-Linked-Etag", "\"../../x\""),
        ("X-Linked-Size", "many"),
        ("X-Linked-Etag", "\"\""),
    ] {
        s.hub.manners().header = Some(header);
        s.inspect(NAME, &[]).refused(&["is it a hub?"]);
    }
    s.hub.manners().header = None;
    s.hub.manners().busy = 2;
    s.inspect(NAME, &[]).done();
    // What was downloaded serves also when the hub does not know the user any more.
    s.hub.manners().refuse = Some(("", 401));
    let ran = s.inspect(NAME, &[]).done();
    assert!(ran.stderr.contains("taken from the cache"), "{ran}");
}

/// A request that fails must not make another file of the repository the network's weights.
#[test]
fn what_is_not_known_to_be_absent_is_not_replaced() {
    let case = Case::new();
    let mut files = files(&case);
    files.insert("pytorch_model.bin".into(), vec![0; 5000]);
    let s = Setting { hub: HubServer::new(files.clone()), case, files };
    s.hub.manners().breaks = usize::MAX;
    s.inspect(NAME, &[]).refused(&[WEIGHTS, "breaks off again and again"]);
    s.inspect(NAME, &[("HF_HUB_OFFLINE", "1")]).refused(&[WEIGHTS, "HF_HUB_OFFLINE"]);
    s.inspect(NAME, &[("HF_ENDPOINT", "http://127.0.0.1:9")]).refused(&[WEIGHTS, "can't be reached"]);
}

#[test]
fn weights_in_parts_and_repositories_without() {
    let case = Case::new();
    let mut files = files(&case);
    files.remove(WEIGHTS);
    let mut map = serde_json::Map::new();
    for (i, part) in Net::ResNet.weights(1).chunks(20).enumerate() {
        let (name, path) = (format!("part-{i}.safetensors"), case.path("part"));
        write_tensors(&path, part);
        files.insert(name.clone(), fs::read(path).unwrap());
        map.extend(part.iter().map(|t| (t.name.clone(), json!(name))));
    }
    files.insert("model.safetensors.index.json".into(), json!({ "weight_map": map }).to_string().into());
    let s = Setting { hub: HubServer::new(files.clone()), case, files };
    s.inspect(NAME, &[]).done();
    s.inspect(NAME, &[("HF_HUB_OFFLINE", "1")]).done();

    let Setting { case, mut files, .. } = s;
    fs::remove_dir_all(case.path("hf")).unwrap();
    files.remove("part-1.safetensors");
    let s = Setting { hub: HubServer::new(files.clone()), case, files };
    s.inspect(NAME, &[]).refused(&["part-1.safetensors"]);

    let Setting { case, mut files, .. } = s;
    fs::remove_dir_all(case.path("hf")).unwrap();
    files.retain(|name, _| name == "config.json");
    let s = Setting { hub: HubServer::new(files.clone()), case, files };
    s.inspect(NAME, &[]).refused(&["has no weights that lotep reads", WEIGHTS]);
}
