//! Learning-rate schedules as functions of the step alone, so that resuming needs no saved state.

use serde::{Deserialize, Serialize};

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Half a cosine, to zero.
    #[default]
    Cosine,
    /// A line, to zero.
    Linear,
    /// No change.
    Constant,
}

impl Schedule {
    /// What the learning rate is multiplied by at `step` (0-based) of `total`, after a linear warm-up from zero
    /// over the first `warmup` steps.
    pub fn factor(self, step: usize, total: usize, warmup: usize) -> f64 {
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let progress = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Cosine => (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0),
            Self::Linear => (1.0 - progress).max(0.0),
            Self::Constant => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn torch_tables() {
        let Some(table) = fixtures::json("methods/lr_schedules.json") else { return };
        let mut done = 0;
        for row in table.as_array().unwrap() {
            let schedule = match row["kind"].as_str().unwrap() {
                "lorvp_warmup_cosine" => Schedule::Cosine,
                "lorvp_warmup_linear" => Schedule::Linear,
                "constant" => Schedule::Constant,
                _ => continue,
            };
            done += 1;
            let n = |key: &str| row[key].as_u64().unwrap() as usize;
            let base = row["base_lr"].as_f64().unwrap();
            for (step, expected) in row["lr"].as_array().unwrap().iter().enumerate() {
                let lr = base * schedule.factor(step, n("total_steps"), n("warmup_steps"));
                assert!((lr - expected.as_f64().unwrap()).abs() < 1e-15, "{row} step {step}: {lr}");
            }
        }
        assert!(done >= 12, "{done} tables");
    }
}
