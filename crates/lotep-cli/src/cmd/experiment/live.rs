//! The view of running processes: on a terminal a line each and a bar, else a line an event.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use lotep::experiment::{Ended, Job, News};

use crate::ui::Ui;

/// What the user sees.
pub(super) struct Live<'a> {
    ui: &'a Ui,
    screen: Option<(MultiProgress, ProgressBar)>,
    /// An empty line above the others: see [`Live::new`].
    spare: Option<ProgressBar>,
    lines: BTreeMap<String, ProgressBar>,
    /// Runs that were done before.
    before: usize,
    done: usize,
    all: usize,
    stopping: bool,
}

impl<'a> Live<'a> {
    /// A view of `all` runs, of which some are done.
    pub(super) fn new(ui: &'a Ui, done: usize, all: usize) -> Self {
        let mut spare = None;
        let screen = ui.lively().then(|| {
            let screen = MultiProgress::new();
            // Every line is filled to its end, so a terminal's ^C begins another below the view, which is then taken to be one
            // line higher than it is and leaves its first line behind: this one, where there is nothing to see.
            let empty = screen.add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template(" ") {
                empty.set_style(style);
            }
            empty.tick();
            spare = Some(empty);
            let bar = screen.add(ProgressBar::new(all as u64));
            if let Ok(style) =
                ProgressStyle::with_template("{prefix:>12} {bar:20} {pos}/{len}  {elapsed}{wide_msg}")
            {
                bar.set_style(style);
            }
            bar.set_prefix("runs");
            bar.set_position(done as u64);
            // What the signal's handler writes would go between the lines.
            Ui::silence_signals(true);
            (screen, bar)
        });
        Self { ui, screen, spare, lines: BTreeMap::new(), before: done, done, all, stopping: false }
    }

    /// Hear what happens; false once the user asked to stop.
    pub(super) fn news(&mut self, news: News<'_>, result: impl Fn(&Job) -> String) -> bool {
        match news {
            News::Begun(job) => self.begun(job),
            News::Moved(job, epochs) => {
                if let Some(line) = self.lines.get(&job.id) {
                    let far = match job.epochs {
                        0 => format!("{epochs} epochs so far"),
                        all if epochs >= all => format!("epoch {all}/{all}, testing"),
                        all => format!("epoch {epochs}/{all}"),
                    };
                    line.set_message(format!("{}  {far}", job.id));
                }
            }
            News::Ended(job, how, seconds) => {
                self.done += 1;
                let said = match how {
                    Ended::Done => format!("done    {}  {}  {seconds:.0} s", job.id, result(job)),
                    Ended::Failed(why) => format!("failed  {}: {why}", job.id),
                };
                self.ended(job, &said);
            }
            News::Waiting => {
                for line in self.lines.values() {
                    line.tick();
                }
                if let Some((_, bar)) = &self.screen {
                    bar.set_message(self.left(bar.elapsed()));
                    bar.tick();
                }
            }
        }
        if Ui::stopped() && !self.stopping {
            self.stopping = true;
            if let Some((screen, bar)) = &self.screen {
                bar.set_message("  stopping");
                _ = screen.println("stopping: what runs is saved (Ctrl-C again does not wait for it)");
            }
        }
        !self.stopping
    }

    /// How long the others take, if they are like those that have ended in this time; nothing before one has.
    fn left(&self, elapsed: Duration) -> String {
        let ended = self.done.saturating_sub(self.before);
        let Some(left) = self.all.checked_sub(self.done).filter(|left| ended > 0 && *left > 0) else {
            return String::new();
        };
        let left = elapsed.mul_f64(left as f64 / ended as f64);
        format!("  {:#} left", HumanDuration(left))
    }

    fn begun(&mut self, job: &Job) {
        let Some((screen, bar)) = &self.screen else {
            return self.ui.note(&format!("begun   {}", job.id));
        };
        let line = screen.insert_before(bar, ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{spinner:>12} {elapsed:>4}  {wide_msg}") {
            line.set_style(style);
        }
        line.set_message(job.id.clone());
        self.lines.insert(job.id.clone(), line);
    }

    fn ended(&mut self, job: &Job, said: &str) {
        let Some((screen, bar)) = &self.screen else {
            return self.ui.note(&format!("{said}  [{}/{}]", self.done, self.all));
        };
        if let Some(line) = self.lines.remove(&job.id) {
            line.finish_and_clear();
        }
        // A terminal that went away is no reason to stop.
        _ = screen.println(said);
        bar.set_position(self.done as u64);
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        for line in self.lines.values().chain(&self.spare) {
            line.finish_and_clear();
        }
        if let Some((_, bar)) = &self.screen {
            bar.finish_and_clear();
            Ui::silence_signals(false);
        }
    }
}
