//! Durations in Go's syntax, as ContainerSSH's configuration and Kubernetes' flags write them.

use std::time::Duration;

/// Text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a duration: write for example 60s, 1m30s, 500ms or 2h (units: ns, us, ms, s, m, h)")]
pub struct DurationError;

/// Reads `60s`, `1m30s`, `1.5h`, `500ms`; units `ns`, `us` (or `µs`), `ms`, `s`, `m`, `h`. `0` needs no unit. Negative durations are
/// refused: no setting here has a use for one.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut total: u128 = 0;
    if rest.is_empty() {
        return Err(DurationError);
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(DurationError)?;
        let (number, tail) = rest.split_at(end);
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        total = total.checked_add(nanoseconds(number, unit)?).ok_or(DurationError)?;
        rest = tail;
    }
    u64::try_from(total).map(Duration::from_nanos).map_err(|_| DurationError)
}

/// Exact: a fraction is cut at whole nanoseconds, as Go does.
fn nanoseconds(number: &str, unit: &str) -> Result<u128, DurationError> {
    let scale: u128 = match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return Err(DurationError),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() > 20 || fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return Err(DurationError);
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| DurationError)? };
    let fraction = fraction.get(..fraction.len().min(15)).unwrap_or_default();
    let part = if fraction.is_empty() {
        0
    } else {
        let digits: u128 = fraction.parse().map_err(|_| DurationError)?;
        digits * scale / 10u128.pow(fraction.len() as u32)
    };
    Ok(whole * scale + part)
}

/// Writes a duration such that [`parse_duration`] reads it back: `1m30s`, `1.5s`, `250ms`.
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let (hours, minutes) = (duration.as_secs() / 3600, duration.as_secs() / 60 % 60);
    if nanos == 0 {
        return "0s".to_owned();
    }
    if nanos < 1_000 {
        return format!("{nanos}ns");
    }
    if nanos < 1_000_000 {
        return decimal(nanos, 1_000, "us");
    }
    if nanos < 1_000_000_000 {
        return decimal(nanos, 1_000_000, "ms");
    }
    let seconds = nanos % 60_000_000_000;
    [
        (hours > 0).then(|| format!("{hours}h")),
        (minutes > 0).then(|| format!("{minutes}m")),
        (seconds > 0).then(|| decimal(seconds, 1_000_000_000, "s")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn decimal(nanos: u128, scale: u128, unit: &str) -> String {
    let width = scale.ilog10() as usize;
    let fraction = format!("{:0width$}", nanos % scale);
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    format!("{}{dot}{fraction}{unit}", nanos / scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_go_syntax() {
        for (text, nanos) in [
            ("60s", 60_000_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("500ms", 500_000_000),
            ("1us", 1_000),
            ("1µs", 1_000),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_none() {
        for text in ["", "5", "s", "1d", "-1s", "1 s", "1.2.3s", ".s", "1s2", "99999999999999999999999h", "1e3s", "٣s"]
        {
            assert_eq!(parse_duration(text), Err(DurationError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(nanos in any::<u64>()) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn never_panics(text in ".{0,40}") {
            let _ = parse_duration(&text);
        }
    }
}
