//! Processes, some at once, watched until all have ended.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::collect::trained;
use crate::{Error, Result};

/// A process to be run.
#[derive(Clone, Debug)]
pub struct Job {
    /// What it is called.
    pub id: String,
    /// The program's arguments.
    pub args: Vec<OsString>,
    /// Where what it says is kept.
    pub log: PathBuf,
    /// Where its result goes, whole or not at all; else to the log too.
    pub result: Option<PathBuf>,
    /// The run whose epochs show how far it is.
    pub run: PathBuf,
    /// How many there will be; 0 where that is not known.
    pub epochs: usize,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// As it should.
    Done,
    /// With an error, which it said last.
    Failed(String),
}

/// What happens.
pub enum News<'a> {
    /// A process began.
    Begun(&'a Job),
    /// It got to another epoch.
    Moved(&'a Job, usize),
    /// It ended, after so many seconds.
    Ended(&'a Job, &'a Ended, f64),
    /// Nothing in particular; asked often.
    Waiting,
}

struct Running<'a> {
    job: &'a Job,
    child: Child,
    begun: Instant,
    epochs: usize,
    /// Where its own part of the log begins: behind what earlier tries said.
    log: u64,
}

/// How often processes are looked at.
const PAUSE: Duration = Duration::from_millis(100);
/// At every so many of these looks files are read too.
const FILES: usize = 10;
/// How long they may take to save and end when asked to.
const PATIENCE: Duration = Duration::from_mins(2);

/// Run `jobs` with `program`, `at_once` at a time; `news` hears of them and may stop all by `false`. One that fails leaves
/// the others alone.
///
/// # Errors
/// A process can't be started, or `news` stopped them: they were then asked to save and end.
pub fn run_jobs(
    program: &Path,
    jobs: &[Job],
    at_once: usize,
    news: &mut dyn FnMut(News<'_>) -> bool,
) -> Result<Vec<Ended>> {
    let mut waiting: VecDeque<usize> = (0..jobs.len()).collect();
    let mut running: Vec<(usize, Running<'_>)> = Vec::new();
    let mut ended: Vec<Option<Ended>> = vec![None; jobs.len()];
    let mut looks = 0_usize;
    loop {
        while running.len() < at_once.max(1)
            && let Some(index) = waiting.pop_front()
        {
            let epochs = match start(program, &jobs[index]) {
                Ok(started) => {
                    let epochs = started.epochs;
                    running.push((index, started));
                    epochs
                }
                Err(error) => {
                    stop(running);
                    return Err(error);
                }
            };
            news(News::Begun(&jobs[index]));
            // It goes on where it was.
            if epochs > 0 {
                news(News::Moved(&jobs[index], epochs));
            }
        }
        if running.is_empty() {
            return Ok(ended.into_iter().flatten().collect());
        }
        if !news(News::Waiting) {
            stop(running);
            return Err(Error::Interrupted(
                "stopped, with everything saved: the same command goes on from here".into(),
            ));
        }
        std::thread::sleep(PAUSE);
        looks += 1;
        let at_files = looks.is_multiple_of(FILES);
        let mut left = Vec::with_capacity(running.len());
        for (index, mut r) in running {
            let now = if at_files { trained(&r.job.run).epochs } else { r.epochs };
            if now != r.epochs {
                r.epochs = now;
                news(News::Moved(r.job, now));
            }
            match r.child.try_wait() {
                Ok(None) => left.push((index, r)),
                Ok(Some(status)) => {
                    let how = if status.success() { whole(r.job) } else { Ended::Failed(reason(&r, status)) };
                    news(News::Ended(r.job, &how, r.begun.elapsed().as_secs_f64()));
                    ended[index] = Some(how);
                }
                Err(e) => {
                    let how = Ended::Failed(format!("it can no longer be watched: {e}"));
                    news(News::Ended(r.job, &how, r.begun.elapsed().as_secs_f64()));
                    ended[index] = Some(how);
                }
            }
        }
        running = left;
    }
}

fn start<'a>(program: &Path, job: &'a Job) -> Result<Running<'a>> {
    if let Some(dir) = job.log.parent() {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    let log = OpenOptions::new().create(true).append(true).open(&job.log);
    let log: File = log.map_err(Error::io("write", &job.log))?;
    let before = log.metadata().map_or(0, |log| log.len());
    let both = log.try_clone().map_err(Error::io("write", &job.log))?;
    let out = match &job.result {
        Some(path) => {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
            }
            let part = part(path);
            File::create(&part).map_err(Error::io("write", &part))?
        }
        None => log,
    };
    let mut command = Command::new(program);
    command.args(&job.args).stdin(Stdio::null()).stdout(out).stderr(both);
    // Ctrl-C is for us, and we ask them to end: one of the terminal's beside ours would be the second, which hurries.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let child = command.spawn().map_err(Error::io("start", program))?;
    Ok(Running { job, child, begun: Instant::now(), epochs: trained(&job.run).epochs, log: before })
}

/// What a result is called until it is whole.
fn part(path: &Path) -> PathBuf {
    path.with_extension("part")
}

/// Give a finished process's result its name.
fn whole(job: &Job) -> Ended {
    match &job.result {
        Some(path) => match std::fs::rename(part(path), path) {
            Ok(()) => Ended::Done,
            Err(e) => Ended::Failed(format!("cannot write {}: {e}", path.display())),
        },
        None => Ended::Done,
    }
}

/// The last error that a process spoke of.
fn reason(r: &Running<'_>, status: std::process::ExitStatus) -> String {
    let log = std::fs::read(&r.job.log).unwrap_or_default();
    let log = String::from_utf8_lossy(log.get(r.log as usize..).unwrap_or_default());
    let said = log.lines().rev().take(50).find_map(|line| line.strip_prefix("error: "));
    said.map_or_else(|| format!("it ended with {status}; see {}", r.job.log.display()), str::to_owned)
}

/// Ask processes to save and end, and see to it that they do.
fn stop(mut running: Vec<(usize, Running<'_>)>) {
    for (_, r) in &mut running {
        ask(&mut r.child);
    }
    let asked = Instant::now();
    for (_, r) in &mut running {
        while asked.elapsed() < PATIENCE && matches!(r.child.try_wait(), Ok(None)) {
            std::thread::sleep(PAUSE);
        }
        // What was saved last is whole, whenever a process is killed. One that has ended can't be.
        _ = r.child.kill();
        _ = r.child.wait();
    }
}

/// Ask a process to end, which killing is not; where that can't be said it is killed.
fn ask(child: &mut Child) {
    let told = cfg!(unix)
        && Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
    if !told {
        _ = child.kill();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn job(dir: &Path, id: &str, script: &str) -> Job {
        Job {
            id: id.into(),
            args: ["-c", script].map(OsString::from).to_vec(),
            log: dir.join(format!("logs/{id}.log")),
            result: (id == "a").then(|| dir.join("results/a.txt")),
            run: dir.join(id),
            epochs: 2,
        }
    }

    #[test]
    fn some_run_at_once_and_a_failure_leaves_others_alone() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let jobs = [
            job(dir, "a", "echo fine"),
            job(dir, "b", "echo 'error: no such thing' >&2; exit 1"),
            job(dir, "c", "exit 3"),
        ];
        let (mut most, mut now) = (0_i32, 0);
        let ended = run_jobs(Path::new("/bin/sh"), &jobs, 2, &mut |news| {
            now += match news {
                News::Begun(_) => 1,
                News::Ended(..) => -1,
                _ => 0,
            };
            most = most.max(now);
            true
        })
        .unwrap();
        assert_eq!(most, 2);
        assert_eq!(ended[..2], [Ended::Done, Ended::Failed("no such thing".into())]);
        assert!(matches!(&ended[2], Ended::Failed(why) if why.contains("c.log")), "{ended:?}");
        assert_eq!(std::fs::read_to_string(dir.join("results/a.txt")).unwrap(), "fine\n");
        // A second try says nothing: the first one's reason is not its own.
        let again = [job(dir, "b", "kill -9 $$")];
        let ended = run_jobs(Path::new("/bin/sh"), &again, 1, &mut |_| true).unwrap();
        assert!(matches!(&ended[0], Ended::Failed(why) if why.contains("b.log")), "{ended:?}");
    }

    #[test]
    fn processes_are_asked_to_end_and_may_save() {
        let dir = tempfile::tempdir().unwrap();
        let script = format!(
            "trap 'echo saved >&2; exit 130' TERM; touch {}; while :; do sleep 0.1; done",
            dir.path().join("up").display()
        );
        let jobs = [job(dir.path(), "a", &script), job(dir.path(), "b", "echo never")];
        let up = dir.path().join("up");
        let stopped = run_jobs(Path::new("/bin/sh"), &jobs, 1, &mut |_| !up.exists());
        assert!(matches!(stopped, Err(Error::Interrupted(_))));
        assert_eq!(std::fs::read_to_string(&jobs[0].log).unwrap(), "saved\n");
        assert!(!jobs[1].log.exists() && !dir.path().join("results/a.txt").exists());
    }
}
