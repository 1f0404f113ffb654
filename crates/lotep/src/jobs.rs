//! Runs beside each other, each on its share of the processor's threads.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::train::{Event, Observer};
use crate::{Error, Result, input_error, system};

/// How long to wait for news before asking whether to stop.
const PATIENCE: Duration = Duration::from_millis(100);
/// Share of the memory that runs may take together.
const SHARE: f64 = 0.9;

/// How many of `jobs` runs fit beside each other, each taking `peak_mb`, where `free_mb` are free or this process's own: one
/// at least.
pub(crate) fn affordable(jobs: usize, peak_mb: f64, free_mb: f64) -> usize {
    ((SHARE * free_mb / peak_mb.max(1.0)) as usize).clamp(1, jobs)
}

/// The same after a first run, as this process and the system know it; `observer` hears if it is fewer than `jobs`.
pub(crate) fn affordable_here(jobs: usize, observer: &mut dyn Observer) -> usize {
    let (Some(peak), Some(free)) = (system::peak_rss_mb(), system::free_mb()) else { return jobs };
    let fit = affordable(jobs, peak, free);
    if fit < jobs {
        observer.event(Event::Warning(&format!(
            "--jobs {jobs}: a trial took {peak:.0} MB and there are {free:.0} MB for all, so {fit} at a time"
        )));
    }
    fit
}

/// What a worker tells.
enum News<R> {
    Begun(usize),
    Warning(usize, String),
    Done(usize, Result<R>),
}

/// A run's observer among others: warnings are heard, bars and lines of several runs at once would be a jumble.
struct Relay<'a, R> {
    task: usize,
    news: Sender<News<R>>,
    stop: &'a AtomicBool,
}

impl<R> Observer for Relay<'_, R> {
    fn event(&mut self, event: Event<'_>) {
        if let Event::Warning(line) = event {
            // No one listens any more only where the sweep is over.
            _ = self.news.send(News::Warning(self.task, line.to_owned()));
        }
    }

    fn stop(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// Run `tasks`, `jobs` at a time. `begin` gives the line that announces a task; `done` takes what came of it, in the order in
/// which they end. One job's runs use all threads and `observer` itself.
///
/// # Errors
/// The first error of a run or of `done`; the other runs are stopped then.
pub(crate) fn run<R: Send>(
    tasks: &[usize],
    jobs: usize,
    observer: &mut dyn Observer,
    begin: impl Fn(usize) -> String,
    run: impl Fn(usize, &mut dyn Observer) -> Result<R> + Sync,
    mut done: impl FnMut(usize, R, &mut dyn Observer) -> Result<()>,
) -> Result<()> {
    let jobs = jobs.min(tasks.len());
    if jobs <= 1 {
        for &task in tasks {
            observer.event(Event::Plan(&begin(task)));
            let result = run(task, observer)?;
            done(task, result, observer)?;
        }
        return Ok(());
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (cores / jobs).max(1);
    let queue = Mutex::new(tasks.iter().copied().collect::<VecDeque<_>>());
    let stop = AtomicBool::new(false);
    let (sender, receiver) = channel();
    let work = |news: Sender<News<R>>| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        while !stop.load(Ordering::SeqCst) {
            let Some(task) = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else { break };
            _ = news.send(News::Begun(task));
            let mut relay = Relay { task, news: news.clone(), stop: &stop };
            let result = match &pool {
                Ok(pool) => pool.install(|| run(task, &mut relay)),
                Err(why) => Err(input_error!("--jobs {jobs}: no threads to be had: {why}")),
            };
            _ = news.send(News::Done(task, result));
        }
    };
    let work = &work;
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let news = sender.clone();
            scope.spawn(move || work(news));
        }
        drop(sender);
        let mut failed: Option<Error> = None;
        loop {
            let result = match receiver.recv_timeout(PATIENCE) {
                Ok(News::Begun(task)) => {
                    observer.event(Event::Plan(&begin(task)));
                    Ok(())
                }
                Ok(News::Warning(task, line)) => {
                    observer.event(Event::Warning(&format!("{}: {line}", begin(task).trim())));
                    Ok(())
                }
                Ok(News::Done(task, result)) => result.and_then(|result| done(task, result, observer)),
                Err(RecvTimeoutError::Timeout) => Ok(()),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Err(error) = result {
                failed.get_or_insert(error);
            }
            if failed.is_some() || observer.stop() {
                stop.store(true, Ordering::SeqCst);
            }
        }
        match failed {
            Some(error) => Err(error),
            // Stopped between two runs: no run noticed.
            None if stop.load(Ordering::SeqCst) => Err(Error::Interrupted("stopped".into())),
            None => Ok(()),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::bail;
    use crate::train::Silent;

    #[test]
    fn memory_decides_how_many() {
        assert_eq!(affordable(4, 100.0, 1000.0), 4);
        assert_eq!(affordable(4, 300.0, 1000.0), 3);
        assert_eq!(affordable(4, 2000.0, 1000.0), 1);
        assert_eq!(affordable(4, 0.0, 1000.0), 4);
    }

    #[test]
    fn all_tasks_are_done_on_their_share_of_threads() {
        let tasks: Vec<usize> = (0..7).collect();
        for jobs in [1, 2, 3] {
            let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let mut found = Vec::new();
            let task = |i: usize, _: &mut dyn Observer| {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                if jobs > 1 {
                    assert_eq!(rayon::current_num_threads(), (cores / jobs).max(1));
                }
                std::thread::sleep(Duration::from_millis(5));
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(i * i)
            };
            let done = |i, square, _: &mut dyn Observer| {
                found.push((i, square));
                Ok(())
            };
            run(&tasks, jobs, &mut Silent, |i| i.to_string(), task, done).unwrap();
            found.sort_unstable();
            assert_eq!(found, tasks.iter().map(|i| (*i, i * i)).collect::<Vec<_>>());
            assert!(most.into_inner() <= jobs);
        }
    }

    #[test]
    fn the_first_error_stops_the_others() {
        let tasks: Vec<usize> = (0..20).collect();
        let begun = AtomicUsize::new(0);
        let task = |i: usize, observer: &mut dyn Observer| {
            begun.fetch_add(1, Ordering::SeqCst);
            if i == 1 {
                bail!("this one fails");
            }
            // A run that goes on until it is told to stop.
            for _ in 0..1000 {
                if observer.stop() {
                    return Err(Error::Interrupted("stopped".into()));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        };
        let error = run(&tasks, 2, &mut Silent, |i| i.to_string(), task, |_, (), _| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "this one fails");
        assert!(begun.into_inner() <= 3);
    }
}
