//! Numbers: several measurements of one thing, and how they are shown.

use std::fmt;
use std::time::Duration;

/// Measurements of one quantity, in one unit.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Sample(Vec<f64>);

impl Sample {
    pub(super) fn push(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    /// The value below which `share` (0 to 1) of the measurements lie; the nearest measurement that there is.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index between 0 and the length"
    )]
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        let last = self.0.len().checked_sub(1)?;
        self.0.get((share * last as f64).round() as usize).copied()
    }

    /// The middle measurement.
    pub(super) fn median(&self) -> Option<f64> {
        self.quantile(0.5)
    }
}

impl FromIterator<f64> for Sample {
    fn from_iter<T: IntoIterator<Item = f64>>(values: T) -> Self {
        let mut sample = Self(values.into_iter().collect());
        sample.0.sort_by(f64::total_cmp);
        sample
    }
}

impl fmt::Display for Sample {
    /// `MEDIAN (MIN–MAX)`; one measurement stands alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.median(), self.0.as_slice()) {
            (Some(median), [min, .., max]) => {
                write!(f, "{} ({}–{})", shown(median), shown(*min), shown(*max))
            }
            (Some(only), _) => f.write_str(&shown(only)),
            (None, _) => f.write_str("–"),
        }
    }
}

/// Three significant digits, whole numbers from 100 on.
fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 || value == 0.0 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Milliseconds.
pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_shows_its_middle_and_its_ends() {
        let sample: Sample = [3.0, 1.0, 200.0, 12.34, 2.0].into_iter().collect();
        assert_eq!(sample.to_string(), "3.00 (1.00–200)");
        assert_eq!(sample.quantile(0.99), Some(200.0));
        assert_eq!([7.0].into_iter().collect::<Sample>().to_string(), "7.00");
        assert_eq!(Sample::default().to_string(), "–");
    }
}
