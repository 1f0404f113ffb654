//! How the program speaks: results to standard output, everything else to standard error; bars on a terminal only.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};
use lotep::hub::Watch;
use lotep::train::{Event, Observer};
use lotep::{Error, Result};
use serde::Serialize;

/// Set by the first Ctrl-C; the second ends the program at once.
static STOP: AtomicBool = AtomicBool::new(false);

/// Whether a view of its own says that it stops.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Where and how to write.
pub(crate) struct Ui {
    json: bool,
    quiet: bool,
    terminal: bool,
    bar: RefCell<Option<ProgressBar>>,
    /// The file whose download was announced.
    downloading: RefCell<Option<String>>,
}

impl Ui {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self {
            json,
            quiet,
            terminal: std::io::stderr().is_terminal(),
            bar: RefCell::default(),
            downloading: RefCell::default(),
        }
    }

    /// Whether results are wanted as JSON lines.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Write a line of the result. A reader that went away (`| head`) is no error.
    pub(crate) fn out(&self, line: &str) -> Result<()> {
        match writeln!(std::io::stdout().lock(), "{line}") {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
            done => done.map_err(Error::io("write", "standard output")),
        }
    }

    /// Write a value as one line of JSON.
    pub(crate) fn out_json(&self, value: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(value).map_err(|e| lotep::input_error!("cannot write JSON: {e}"))?;
        self.out(&line)
    }

    /// Tell the user something besides the result.
    pub(crate) fn note(&self, line: &str) {
        if self.quiet {
            return;
        }
        let print = || _ = writeln!(std::io::stderr().lock(), "{line}");
        match &*self.bar.borrow() {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Say why the program ends.
    pub(crate) fn error(&self, line: &str) {
        self.clear();
        _ = writeln!(std::io::stderr().lock(), "error: {line}");
    }

    /// Stop at the next safe point after Ctrl-C or a termination signal; a second one stops at once.
    pub(crate) fn catch_signals() {
        // A failure to install leaves the default, which is to end at once: nothing to report.
        _ = ctrlc::set_handler(|| {
            if STOP.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            if !SILENT.load(Ordering::SeqCst) {
                _ = writeln!(std::io::stderr().lock(), "\nstopping after this step (again to stop at once)");
            }
        });
    }

    /// Leave it to a view of several lines to say that the program stops, or no longer.
    pub(crate) fn silence_signals(silent: bool) {
        SILENT.store(silent, Ordering::SeqCst);
    }

    /// Whether there is a terminal that wants to see things move.
    pub(crate) fn lively(&self) -> bool {
        self.terminal && !self.quiet
    }

    /// Whether the user asked to stop.
    pub(crate) fn stopped() -> bool {
        STOP.load(Ordering::SeqCst)
    }

    /// Begin a progress bar over `images`; quiet in pipes.
    pub(crate) fn begin(&self, what: &str, images: usize, done: usize) {
        self.clear();
        if self.quiet || !self.terminal {
            return;
        }
        self.show(
            what,
            images as u64,
            "{prefix:>12} {bar:30} {pos}/{len} images  {per_sec}  {msg}  {eta} left",
        );
        if let Some(bar) = &*self.bar.borrow() {
            bar.set_position(done as u64);
            bar.reset_eta();
        }
    }

    fn show(&self, what: &str, length: u64, style: &str) {
        let bar = ProgressBar::new(length);
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_prefix(what.to_owned());
        *self.bar.borrow_mut() = Some(bar);
    }

    /// Move the bar; false once the user asked to stop.
    pub(crate) fn advance(&self, done: usize, message: Option<String>) -> bool {
        if let Some(bar) = &*self.bar.borrow() {
            bar.set_position(done as u64);
            if let Some(message) = message {
                bar.set_message(message);
            }
        }
        !Self::stopped()
    }

    /// Show how far a download is; in a pipe say only that it began.
    pub(crate) fn download(&self, file: &str, done: u64, size: u64) {
        let begun = self.downloading.borrow().as_deref() == Some(file);
        if !begun {
            self.clear();
            *self.downloading.borrow_mut() = Some(file.to_owned());
            let begun =
                if done > 0 { format!(", of which {} are here", DecimalBytes(done)) } else { String::new() };
            self.note(&format!("downloading {file} ({}{begun})", DecimalBytes(size)));
            if !self.quiet && self.terminal {
                let style = "{prefix:>12} {bar:30} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left";
                self.show("download", size, style);
            }
        }
        self.advance(done as usize, None);
        if done == size {
            self.clear();
            *self.downloading.borrow_mut() = None;
        }
    }

    /// Remove the bar.
    pub(crate) fn clear(&self) {
        if let Some(bar) = self.bar.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }
}

/// The library's view of a [`Ui`].
pub(crate) struct Watcher<'a>(pub(crate) &'a Ui);

impl Observer for Watcher<'_> {
    fn event(&mut self, event: Event<'_>) {
        let ui = self.0;
        match event {
            Event::Plan(line) => ui.note(line),
            Event::Download { file, done, size } => ui.download(file, done, size),
            Event::Begin { what, images, done } => ui.begin(what, images, done),
            Event::Advance { done, running } => {
                ui.advance(done, running.map(|(loss, top1)| format!("loss {loss:.3}  top1 {top1:.1}%")));
            }
            Event::Epoch(r, epochs) => {
                ui.clear();
                let also = |name: &str, a: Option<lotep::eval::Accuracy>| {
                    a.map_or(String::new(), |a| format!("  {name} {:.2}%", a.top1))
                };
                ui.note(&format!(
                    "epoch {:>3}/{epochs}  loss {:.4}  train {:.2}%{}{}  {:.1} images/s  {:.0} s",
                    r.epoch,
                    r.train_loss,
                    r.train_top1,
                    also("val", r.val),
                    also("test", r.test),
                    r.images_per_second,
                    r.seconds
                ));
            }
            Event::Warning(line) => ui.note(&format!("warning: {line}")),
        }
    }

    fn stop(&self) -> bool {
        Ui::stopped()
    }
}

impl Watch for Watcher<'_> {
    fn download(&mut self, file: &str, done: u64, size: u64) {
        self.0.download(file, done, size);
    }

    fn warn(&mut self, line: &str) {
        self.event(Event::Warning(line));
    }

    fn stop(&self) -> bool {
        Observer::stop(self)
    }
}
