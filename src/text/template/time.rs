//! Dates for `strftime_now`: the one thing a template may learn from outside. It is in UTC, so
//! that it tells nothing of the machine.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// The epoch was a Thursday.
const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Year, month from 0, day of the month from 1.
fn date(days: u64) -> (u64, usize, u64) {
    let (mut year, mut left) = (1970, days);
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    // 400 years are a whole number of days; what remains is walked.
    year += left / 146_097 * 400;
    left %= 146_097;
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if left < length {
            break;
        }
        left -= length;
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 0;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

/// The time in a format of `strftime`'s; directives it does not know stay as they are.
pub(super) fn format(format: &str, now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, clock) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let name = MONTHS.get(month).copied().unwrap_or_default();
    let weekday = DAYS.get((days % 7) as usize).copied().unwrap_or_default();
    let short = |s: &'static str| s.get(..3).unwrap_or_default().to_string();
    let (h, m, s) = (clock / 3600, clock / 60 % 60, clock % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{:02}", month + 1),
            Some('B') => out += name,
            Some('b') => out += &short(name),
            Some('d') => out += &format!("{day:02}"),
            Some('e') => out += &format!("{day:2}"),
            Some('A') => out += weekday,
            Some('a') => out += &short(weekday),
            Some('H') => out += &format!("{h:02}"),
            Some('I') => out += &format!("{:02}", (h + 11) % 12 + 1),
            Some('p') => out += if h < 12 { "AM" } else { "PM" },
            Some('M') => out += &format!("{m:02}"),
            Some('S') => out += &format!("{s:02}"),
            Some('F') => out += &format!("{year}-{:02}-{day:02}", month + 1),
            Some('T') => out += &format!("{h:02}:{m:02}:{s:02}"),
            Some('Z') => out += "UTC",
            Some('z') => out += "+0000",
            Some('%') | None => out.push('%'),
            Some(other) => out.extend(['%', other]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn known_days() {
        let at = |s| UNIX_EPOCH + Duration::from_secs(s);
        let all = "%A %d %b %Y, %H:%M:%S %p %q%%";
        assert_eq!(format(all, at(0)), "Thursday 01 Jan 1970, 00:00:00 AM %q%");
        assert_eq!(format("%F %T %a", at(951_782_399)), "2000-02-28 23:59:59 Mon");
        assert_eq!(format("%F %I %y", at(951_782_400 + 43_200)), "2000-02-29 12 00");
        assert_eq!(format("%B %e %Y", at(4_107_542_399)), "February 28 2100");
        assert_eq!(format("%F", at(4_107_542_400)), "2100-03-01");
    }
}
