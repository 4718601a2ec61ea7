//! A histogram of latencies.

use std::time::Duration;

/// Microseconds in buckets of 1/32 of their power of two, which is precise to 3 %.
#[derive(Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
}

const STEPS: u64 = 32;

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; 2048] }
    }
}

impl Histogram {
    pub(crate) fn add(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.counts[Self::bucket(micros)] += 1;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, theirs)| *mine += theirs);
    }

    fn bucket(micros: u64) -> usize {
        if micros < STEPS {
            return micros as usize;
        }
        let power = u64::from(micros.ilog2() - STEPS.ilog2());
        (STEPS * power + (micros >> power)) as usize
    }

    /// The lower end of a bucket.
    fn value(bucket: usize) -> u64 {
        let bucket = bucket as u64;
        if bucket < 2 * STEPS {
            return bucket;
        }
        let power = bucket / STEPS - 1;
        (bucket - STEPS * power) << power
    }

    pub(crate) fn quantile(&self, share: f64) -> u64 {
        let total: u64 = self.counts.iter().sum();
        let mut left = (total as f64 * share).ceil();
        for (bucket, count) in self.counts.iter().enumerate() {
            left -= *count as f64;
            if *count > 0 && left <= 0.0 {
                return Self::value(bucket);
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::Histogram;

    #[test]
    fn a_bucket_is_within_three_percent_of_what_it_holds() {
        for micros in (0..2000).chain([65_535, 65_536, 1_000_003, 59_999_999]) {
            let value = Histogram::value(Histogram::bucket(micros));
            assert!(value <= micros && micros - value <= micros / 32, "{micros} is counted as {value}");
        }
    }
}
