//! A server on loopback that answers as the Hugging Face hub does: small files itself, large ones by sending the client
//! to a storage of another address, headers and refusals as there. It misbehaves on request.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use sha1::{Digest, Sha1};
use sha2::Sha256;

use crate::files::hex;

/// The commit that `main` is.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Where small files are.
const SMALL: &str = "/api/resolve-cache/";
/// Files from this size on lie in the storage.
const LARGE: usize = 4096;

/// How the hub behaves; all that a test changes.
#[derive(Default)]
pub(crate) struct Manners {
    /// Answer so many requests with 503 first.
    pub(crate) busy: usize,
    /// Break so many connections of the storage after a third of what was to come.
    pub(crate) breaks: usize,
    /// Send the whole file whatever range was asked for.
    pub(crate) no_ranges: bool,
    /// Flip a bit of what the storage sends.
    pub(crate) damage: bool,
    /// Refuse with this `X-Error-Code` and status.
    pub(crate) refuse: Option<(&'static str, u16)>,
    /// Say this instead of a header's value.
    pub(crate) header: Option<(&'static str, &'static str)>,
    /// Redirect to itself.
    pub(crate) circle: bool,
}

/// A request that arrived.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) storage: bool,
    pub(crate) line: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
}

struct State {
    files: BTreeMap<String, Vec<u8>>,
    storage: String,
    manners: Mutex<Manners>,
    seen: Mutex<Vec<Seen>>,
}

/// The hub, as long as the test's process lives.
pub(crate) struct HubServer {
    pub(crate) address: String,
    state: Arc<State>,
}

impl HubServer {
    /// A hub with these files in `timm/resnet18.tiny`.
    pub(crate) fn new(files: BTreeMap<String, Vec<u8>>) -> Self {
        let [hub, storage] = [0; 2].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let address = |l: &TcpListener| format!("http://{}", l.local_addr().unwrap());
        let (manners, seen) = (Mutex::default(), Mutex::default());
        let state = Arc::new(State { files, storage: address(&storage), manners, seen });
        let server = Self { address: address(&hub), state: state.clone() };
        for (listener, is_storage) in [(hub, false), (storage, true)] {
            let state = state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = state.clone();
                    // A client that hangs up in the middle is no failure of the server's.
                    std::thread::spawn(move || _ = state.serve(&stream, is_storage));
                }
            });
        }
        server
    }

    pub(crate) fn manners(&self) -> MutexGuard<'_, Manners> {
        self.state.manners.lock().unwrap()
    }

    /// What was asked since the last call.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.seen.lock().unwrap())
    }
}

/// The name under which the hub stores a file.
pub(crate) fn etag(bytes: &[u8]) -> String {
    if bytes.len() >= LARGE {
        return hex(&Sha256::digest(bytes));
    }
    hex(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

impl State {
    fn serve(&self, stream: &TcpStream, storage: bool) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream).lines();
        let line = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        let mut headers = BTreeMap::new();
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let header = |name: &str| headers.get(name).cloned();
        let (range, authorization) = (header("range"), header("authorization"));
        self.seen.lock().unwrap().push(Seen {
            storage,
            line: line.clone(),
            range: range.clone(),
            authorization,
        });
        let mut words = line.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let answer = if storage { self.store(path, range.as_deref()) } else { self.hub(path) };
        let Answer { status, headers, body, cut } = answer;
        let mut out = stream;
        write!(out, "HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {}\r\n", body.len())?;
        for (name, value) in headers {
            write!(out, "{name}: {value}\r\n")?;
        }
        out.write_all(b"\r\n")?;
        if method != "HEAD" {
            out.write_all(&body[..cut.unwrap_or(body.len())])?;
        }
        out.flush()
    }

    fn hub(&self, path: &str) -> Answer {
        let mut manners = self.manners.lock().unwrap();
        if manners.busy > 0 {
            manners.busy -= 1;
            return Answer::of(503);
        }
        if let Some((code, status)) = manners.refuse {
            return Answer::of(status)
                .with("X-Error-Code", code)
                .with("X-Error-Message", "as the test wished");
        }
        if let Some(file) = path.strip_prefix(SMALL) {
            let Some(bytes) = self.files.get(file) else { return Answer::of(404) };
            let answer = Answer::of(200).with("X-Repo-Commit", COMMIT);
            return Answer { body: bytes.clone(), ..answer.with("ETag", format!("W/\"{}\"", etag(bytes))) };
        }
        let Some((repo, rest)) = path.split_once("/resolve/") else { return Answer::of(404) };
        if manners.circle || repo == "/timm/resnet18.old" {
            let to =
                if manners.circle { path.to_owned() } else { format!("/timm/resnet18.tiny/resolve/{rest}") };
            return Answer::of(307).with("Location", to);
        }
        let Some((revision, file)) = rest.split_once('/').filter(|_| repo == "/timm/resnet18.tiny") else {
            return Answer::of(401).with("X-Error-Code", "RepoNotFound");
        };
        if !["main", "v1", "refs%2Fpr%2F1", COMMIT].contains(&revision) {
            return Answer::of(404).with("X-Error-Code", "RevisionNotFound");
        }
        let Some(bytes) = self.files.get(file) else {
            return Answer::of(404).with("X-Error-Code", "EntryNotFound").with("X-Repo-Commit", COMMIT);
        };
        let large = bytes.len() >= LARGE;
        let mut answer = Answer::of(if large { 302 } else { 200 }).with("X-Repo-Commit", COMMIT);
        let tag = format!("\"{}\"", etag(bytes));
        answer = if large {
            // Its own size and etag are those of the redirection.
            let to = format!("{}/{file}", self.storage);
            answer
                .with("ETag", "\"redirect\"")
                .with("X-Linked-Etag", tag)
                .with("Location", to)
                .with("X-Linked-Size", bytes.len())
        } else {
            // Another part of the hub has it; the length is that of this answer.
            let body = b"Temporary Redirect".to_vec();
            Answer { status: 307, body, ..answer.with("Location", format!("{SMALL}{file}")) }
        };
        for (name, value) in &mut answer.headers {
            if let Some((_, said)) = manners.header.filter(|(other, _)| other == name) {
                said.clone_into(value);
            }
        }
        answer
    }

    fn store(&self, path: &str, range: Option<&str>) -> Answer {
        let mut manners = self.manners.lock().unwrap();
        let Some(bytes) = self.files.get(&path[1..]) else { return Answer::of(404) };
        let from = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        let from = from.filter(|_| !manners.no_ranges);
        let mut answer = match from {
            Some(from) if from >= bytes.len() => return Answer::of(416),
            Some(from) => {
                let part = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                Answer { body: bytes[from..].to_vec(), ..Answer::of(206).with("Content-Range", part) }
            }
            None => Answer { body: bytes.clone(), ..Answer::of(200) },
        };
        if manners.damage {
            answer.body[0] ^= 1;
        }
        if manners.breaks > 0 {
            manners.breaks -= 1;
            answer.cut = Some(answer.body.len() / 3);
        }
        answer
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    cut: Option<usize>,
}

impl Answer {
    fn of(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), cut: None }
    }

    fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }
}
