//! Axes: from values to pixels, with ticks at round numbers.

/// A range of values over a range of pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    values: [f64; 2],
    pixels: [f64; 2],
    log: bool,
}

impl Scale {
    /// Over all finite `values`, with some room around them; `log` wants them positive.
    pub(super) fn over(values: impl Iterator<Item = f64>, pixels: [f64; 2], log: bool) -> Self {
        let fold = |[low, high]: [f64; 2], v: f64| [low.min(v), high.max(v)];
        let usable = values.filter(|v| v.is_finite() && (!log || *v > 0.0));
        let [low, high] = usable.fold([f64::INFINITY, f64::NEG_INFINITY], fold);
        let [low, high] = match (low <= high, log) {
            (false, _) => [if log { 0.1 } else { 0.0 }, 1.0],
            (true, true) => [low / 1.3, high * 1.3],
            (true, false) if low >= high => {
                [low - 0.5 * low.abs().max(1.0), high + 0.5 * high.abs().max(1.0)]
            }
            (true, false) => [low - 0.06 * (high - low), high + 0.06 * (high - low)],
        };
        Self { values: [low, high], pixels, log }
    }

    /// Where a value is.
    pub(super) fn at(self, value: f64) -> f64 {
        let [from, to] = self.values.map(|v| self.flat(v));
        let [begin, end] = self.pixels;
        begin + (end - begin) * (self.flat(value) - from) / (to - from)
    }

    fn flat(self, value: f64) -> f64 {
        if self.log { value.max(f64::MIN_POSITIVE).log10() } else { value }
    }

    /// Round values inside, with their names.
    pub(super) fn ticks(self) -> Vec<(f64, String)> {
        let [low, high] = self.values;
        let inside = |v: &f64| (low..=high).contains(v);
        if self.log {
            let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
            let each = |digits: &'static [f64]| {
                decades
                    .clone()
                    .flat_map(move |d| digits.iter().map(move |k| k * 10_f64.powi(d)))
                    .filter(inside)
            };
            let mut ticks: Vec<f64> = each(&[1.0]).collect();
            if ticks.len() < 3 {
                ticks = each(&[1.0, 2.0, 5.0]).collect();
            }
            return ticks.into_iter().map(|v| (v, short_number(v))).collect();
        }
        let rough = (high - low) / 8.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|k| k * power).into_iter().find(|s| *s >= rough);
        let step = step.unwrap_or(10.0 * power);
        let first = (low / step).ceil() as i64;
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        let ticks = (first..).map(|i| i as f64 * step).take_while(|v| *v <= high);
        ticks.take(20).map(|v| (v, format!("{v:.decimals$}"))).collect()
    }
}

/// 1500 as 1.5k.
pub(super) fn short_number(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = if scaled.fract().abs() < 1e-9 { format!("{scaled:.0}") } else { format!("{scaled:.2}") };
    format!("{text}{unit}")
}

/// A value with the digits that it needs to be told from zero.
pub(super) fn exact(value: f64) -> String {
    match value.abs() {
        v if v >= 0.1 || v == 0.0 => format!("{value:.2}"),
        v if v >= 0.001 => format!("{value:.4}"),
        _ => format!("{value:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let scale = Scale::over([61.3, 72.9].into_iter(), [0.0, 100.0], false);
        let ticks: Vec<String> = scale.ticks().into_iter().map(|(_, name)| name).collect();
        assert_eq!(ticks, ["62", "64", "66", "68", "70", "72"]);
        assert!(scale.ticks().iter().all(|(v, _)| (0.0..=100.0).contains(&scale.at(*v))));
        let log = Scale::over([5_000.0, 2e6].into_iter(), [0.0, 100.0], true);
        let ticks: Vec<String> = log.ticks().into_iter().map(|(_, name)| name).collect();
        assert_eq!(ticks, ["10k", "100k", "1M"]);
    }

    #[test]
    fn small_values_are_not_zero() {
        assert_eq!([81.234, 0.0, 0.0018, 0.000_02].map(exact), ["81.23", "0.00", "0.0018", "2.0e-5"]);
    }

    #[test]
    fn nothing_to_show_is_no_error() {
        for log in [false, true] {
            let empty = Scale::over([f64::NAN].into_iter(), [0.0, 100.0], log);
            assert!(empty.at(0.5).is_finite() && !empty.ticks().is_empty());
        }
        let one = Scale::over([7.0].into_iter(), [0.0, 100.0], false);
        assert!((one.at(7.0) - 50.0).abs() < 1e-9);
    }
}
