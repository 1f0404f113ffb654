//! Requests to the hub, and what its answers mean.

use std::time::Duration;

use ureq::http::{Method, Request, Response, StatusCode, Uri, header};
use ureq::{Agent, Body};

use super::{Repo, is_commit};

/// Redirects before something is wrong.
const REDIRECTS: usize = 10;

/// What the hub says of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    /// The commit it belongs to.
    pub(super) commit: String,
    /// The blob's name: SHA-256 of a large file, git's SHA-1 of a small one.
    pub(super) etag: String,
    /// Bytes.
    pub(super) size: u64,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The hub knows the repository, but not the revision.
    NoRevision(String),
    /// The hub says no; asking again will not help.
    Refused(String),
    /// The hub is there but has no time.
    Busy(String),
    /// There is no hub.
    Unreachable(String),
}

/// The hub's door.
pub(super) struct Http {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

impl Http {
    pub(super) fn new(endpoint: String, token: Option<String>) -> Self {
        // Redirects are followed here: the first answer has headers that matter, and the token is for the hub alone.
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("lotep/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(Duration::from_secs(10)))
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(30)))
            // A connection that has gone quiet is opened anew; a slow one may take as long as it likes.
            .timeout_per_read(Some(Duration::from_secs(30)))
            .build();
        Self { agent: config.new_agent(), endpoint, token }
    }

    fn address(&self, repo: &Repo, file: &str) -> String {
        format!("{}/{}/resolve/{}/{file}", self.endpoint, repo.name, repo.revision.replace('/', "%2F"))
    }

    /// What the hub has under this name; `None` if the repository has no such file.
    pub(super) fn ask(&self, repo: &Repo, file: &str) -> Result<Option<Answer>, Failure> {
        let (mut commit, mut linked) = (None, [None, None]);
        let response = self.patiently(|| {
            self.send(&Method::HEAD, &self.address(repo, file), None, |response, within| {
                let of = |name: &str| text(response, name).map(str::to_owned);
                commit = of("x-repo-commit").or(commit.take());
                let [etag, size] = &mut linked;
                (*etag, *size) = (of("x-linked-etag").or(etag.take()), of("x-linked-size").or(size.take()));
                // Within the hub (a renamed repository, a cache for small files) a redirect is followed; what leads
                // to the storage behind it has all headers already, and its own length is not the file's.
                within || commit.is_none() || linked.contains(&None)
            })
        })?;
        let status = response.status();
        if !status.is_success() && !status.is_redirection() {
            return if text(&response, "x-error-code") == Some("EntryNotFound") {
                Ok(None)
            } else {
                Err(self.failure(repo, &response))
            };
        }
        let own = |name: &str| text(&response, name).filter(|_| status.is_success()).map(str::to_owned);
        let answer = || {
            let [etag, size] = linked;
            let commit = commit.filter(|c| is_commit(c))?;
            let etag = etag.or_else(|| own("etag"))?;
            let etag = etag.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            let size = size.or_else(|| own("content-length"))?.parse().ok()?;
            (!etag.is_empty() && etag.len() <= 128 && etag.bytes().all(plain)).then_some(Answer {
                commit,
                etag,
                size,
            })
        };
        answer().map(Some).ok_or_else(|| {
            let who = &self.endpoint;
            Failure::Refused(format!(
                "{who} answers without a commit, an etag or a size: is it a hub? (HF_ENDPOINT)"
            ))
        })
    }

    /// Begin to receive a file from byte `start`.
    pub(super) fn receive(&self, repo: &Repo, file: &str, start: u64) -> Result<Response<Body>, Failure> {
        let response = self.send(&Method::GET, &self.address(repo, file), Some(start), |_, _| true)?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
            _ => Err(self.failure(repo, &response)),
        }
    }

    /// Ask again when the hub is busy, and once when it can't be reached.
    fn patiently<T>(&self, mut ask: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
        let mut wait = Duration::from_millis(500);
        for attempt in 0..3 {
            match ask() {
                Err(Failure::Busy(_)) => {}
                Err(Failure::Unreachable(_)) if attempt == 0 => {}
                done => return done,
            }
            std::thread::sleep(wait);
            wait *= 2;
        }
        ask()
    }

    /// Send, and follow redirects for as long as `follow` says so of a response; it hears whether one leads to the same
    /// host.
    fn send(
        &self,
        method: &Method,
        address: &str,
        start: Option<u64>,
        mut follow: impl FnMut(&Response<Body>, bool) -> bool,
    ) -> Result<Response<Body>, Failure> {
        let mut address = address.to_owned();
        for _ in 0..REDIRECTS {
            let mut request = Request::builder().method(method).uri(&address);
            request = request.header(header::ACCEPT_ENCODING, "identity");
            if let Some(token) = self.token.as_ref().filter(|_| origin(&address) == origin(&self.endpoint)) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if let Some(start) = start.filter(|start| *start > 0) {
                request = request.header(header::RANGE, format!("bytes={start}-"));
            }
            let request = request.body(()).map_err(|e| Failure::Refused(format!("{address}: {e}")))?;
            let response = self
                .agent
                .run(request)
                .map_err(|e| Failure::Unreachable(format!("{} can't be reached: {e}", origin(&address))))?;
            let status = response.status();
            if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
                return Err(Failure::Busy(format!("{} answers {status}", origin(&address))));
            }
            let location = text(&response, "location").filter(|_| status.is_redirection());
            let next = location.map(|location| match location.strip_prefix('/') {
                Some(path) => format!("{}/{path}", origin(&address)),
                None => location.to_owned(),
            });
            let within = next.as_ref().is_some_and(|next| origin(next) == origin(&address));
            match (follow(&response, within), next) {
                (true, Some(next)) => address = next,
                _ => return Ok(response),
            }
        }
        Err(Failure::Refused(format!("{} redirects without end", origin(&address))))
    }

    /// What the hub means by a refusal.
    fn failure(&self, repo: &Repo, response: &Response<Body>) -> Failure {
        let name = &repo.name;
        let said = text(response, "x-error-message").map_or(String::new(), |m| format!(" ({m})"));
        let token = if self.token.is_some() { "the token given" } else { "no token; HF_TOKEN gives one" };
        let code = text(response, "x-error-code");
        if code == Some("RevisionNotFound") {
            return Failure::NoRevision(format!("{name} has no revision `{}`", repo.revision));
        }
        Failure::Refused(match (code, response.status().as_u16()) {
            (Some("GatedRepo"), _) => format!(
                "{name} is gated: accept its terms at {}/{name} and identify yourself ({token})",
                self.endpoint
            ),
            (Some("RepoNotFound"), _) | (None, 401) => {
                format!("the hub has no repository {name}, or it is private ({token}){said}")
            }
            (_, status) => format!("{} answers {status} for {name}{said}", self.endpoint),
        })
    }
}

/// Scheme, host and port of an address.
fn origin(address: &str) -> String {
    let uri: Uri = address.parse().unwrap_or_default();
    format!("{}://{}", uri.scheme_str().unwrap_or_default(), uri.authority().map_or("", |a| a.as_str()))
}

/// A header's value.
pub(super) fn text<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}
