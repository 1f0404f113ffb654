//! How the rank of a block's prompt falls with depth.

use serde::{Deserialize, Serialize};

/// The law by which rank decays over the prompted blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RankSchedule {
    /// LoTeP eq. 8: `ceil(1 + (r₀ - 1)/2 · (1 + cos(π l / (d - 1))))`.
    #[default]
    Cosine,
    /// `ceil(1 + (r₀ - 1) · (1 - l / (d - 1)))`.
    Linear,
    /// r₀ everywhere.
    Constant,
}

/// What l is divided by in the schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RankDenominator {
    /// d − 1, as printed: the last prompted block has rank 1.
    #[default]
    #[serde(rename = "d-1")]
    LastBlock,
    /// d: the schedule would reach rank 1 one block later.
    #[serde(rename = "d")]
    Depth,
}

/// Ranks of the first `d` blocks, starting from `r0`. `d = 0` has none; one block has `r0` (eq. 8 is 0/0).
pub fn ranks(schedule: RankSchedule, denominator: RankDenominator, r0: usize, d: usize) -> Vec<usize> {
    let last = match denominator {
        RankDenominator::LastBlock => d.saturating_sub(1),
        RankDenominator::Depth => d,
    };
    let (span, last) = (r0.saturating_sub(1) as f64, last.max(1) as f64);
    (0..d)
        .map(|l| {
            let x = l as f64 / last;
            let rank = match schedule {
                RankSchedule::Cosine => 1.0 + span / 2.0 * (1.0 + (std::f64::consts::PI * x).cos()),
                RankSchedule::Linear => 1.0 + span * (1.0 - x),
                RankSchedule::Constant => r0 as f64,
            };
            // cos(π/3) and its like miss the exact integer by an ulp; without the slack ceil adds one.
            (rank - 1e-9).ceil() as usize
        })
        .collect()
}

/// How many of `blocks` are prompted at depth ratio ρ: `floor(L ρ)`, safe against 0.29 · 100 = 28.999….
pub fn prompted_blocks(blocks: usize, depth_ratio: f64) -> usize {
    ((blocks as f64 * depth_ratio + 1e-9).floor() as usize).min(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn tables_of_the_fixture() {
        let Some(table) = fixtures::json("methods/ranks.json") else { return };
        let rows = table["rows"].as_array().unwrap();
        assert!(rows.len() > 200);
        for row in rows {
            let (r0, d) = (row["r0"].as_u64().unwrap() as usize, row["d"].as_u64().unwrap() as usize);
            for (name, schedule) in [
                ("cosine", RankSchedule::Cosine),
                ("linear", RankSchedule::Linear),
                ("constant", RankSchedule::Constant),
            ] {
                let expected: Vec<usize> = serde_json::from_value(row[name].clone()).unwrap();
                assert_eq!(
                    ranks(schedule, RankDenominator::LastBlock, r0, d),
                    expected,
                    "{name} r0={r0} d={d}"
                );
            }
        }
    }

    #[test]
    fn the_other_denominator_gives_hypothesis_ha() {
        assert_eq!(ranks(RankSchedule::Cosine, RankDenominator::Depth, 6, 4), [6, 6, 4, 2]);
        assert_eq!(ranks(RankSchedule::Cosine, RankDenominator::LastBlock, 6, 4), [6, 5, 3, 1]);
        assert_eq!(ranks(RankSchedule::Cosine, RankDenominator::LastBlock, 6, 0), [0; 0]);
    }

    #[test]
    fn depth_is_floored_safely() {
        assert_eq!(prompted_blocks(100, 0.29), 29);
        assert_eq!([prompted_blocks(8, 0.8), prompted_blocks(16, 0.8), prompted_blocks(12, 0.4)], [6, 12, 4]);
        assert_eq!([prompted_blocks(8, 0.0), prompted_blocks(8, 1.0)], [0, 8]);
    }
}
