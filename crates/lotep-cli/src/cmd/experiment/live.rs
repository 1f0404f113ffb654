//! The view of running processes: on a terminal a line each and a bar, else a line an event.

use std::collections::BTreeMap;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use lotep::experiment::{Ended, Job, News};

use crate::ui::Ui;

/// What the user sees.
pub(super) struct Live<'a> {
    ui: &'a Ui,
    screen: Option<(MultiProgress, ProgressBar)>,
    lines: BTreeMap<String, ProgressBar>,
    done: usize,
    all: usize,
}

impl<'a> Live<'a> {
    /// A view of `all` runs, of which some are done.
    pub(super) fn new(ui: &'a Ui, done: usize, all: usize) -> Self {
        let screen = ui.lively().then(|| {
            let screen = MultiProgress::new();
            let bar = screen.add(ProgressBar::new(all as u64));
            if let Ok(style) =
                ProgressStyle::with_template("{prefix:>12} {bar:30} {pos}/{len}  {elapsed}  {eta} left")
            {
                bar.set_style(style);
            }
            bar.set_prefix("runs");
            bar.set_position(done as u64);
            bar.reset_eta();
            (screen, bar)
        });
        Self { ui, screen, lines: BTreeMap::new(), done, all }
    }

    /// Hear what happens; false once the user asked to stop.
    pub(super) fn news(&mut self, news: News<'_>, result: impl Fn(&Job) -> String) -> bool {
        match news {
            News::Begun(job) => self.begun(job),
            News::Moved(job, epochs) => {
                if let Some(line) = self.lines.get(&job.id) {
                    line.set_message(format!("{}  epoch {epochs}/{}", job.id, job.epochs));
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
                    bar.tick();
                }
            }
        }
        !Ui::stopped()
    }

    fn begun(&mut self, job: &Job) {
        let Some((screen, bar)) = &self.screen else {
            return self.ui.note(&format!("begun   {}", job.id));
        };
        let line = screen.insert_before(bar, ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{spinner:>12} {msg}  {elapsed}") {
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
        for line in self.lines.values() {
            line.finish_and_clear();
        }
        if let Some((_, bar)) = &self.screen {
            bar.finish_and_clear();
        }
    }
}
