//! `strftime_now`: C's `strftime` in the C locale, as Python passes formats on to glibc.

use crate::calendar::civil;
use minijinja::{Error, ErrorKind};

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
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// The widest field that is written.
const MAX_WIDTH: usize = 1024;

/// A moment, in UTC.
struct Moment {
    seconds: u64,
    year: i64,
    month: i64,
    day: i64,
    /// From 0, Sunday.
    weekday: i64,
    /// From 0.
    day_of_year: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

/// How a field is written.
enum Field {
    /// A number, filled up to a width with this character.
    Number(i64, usize, char),
    Text(String),
}

/// The format with its directives filled in, for `seconds` since 1970 in UTC. Python gives datetimes without a zone to it: `%z`
/// and `%Z` are empty. A directive that glibc does not know stands as it is.
///
/// # Errors
/// When a field is wider than 1,024.
pub fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let moment = Moment::of(seconds);
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let directive = &rest[at + 1..];
        let flags = directive.len() - directive.trim_start_matches(['-', '_', '0', '^', '#']).len();
        let behind = &directive[flags..];
        let digits = behind.len() - behind.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let width = behind[..digits].parse::<usize>().unwrap_or(0);
        if width > MAX_WIDTH {
            return Err(Error::new(ErrorKind::InvalidOperation, "strftime_now: a field is too wide"));
        }
        let named = behind[digits..].trim_start_matches(['E', 'O']);
        let Some(letter) = named.chars().next() else {
            out.push_str(&rest[at..]);
            return Ok(out);
        };
        let end = at + 1 + flags + digits + (behind.len() - digits - named.len()) + letter.len_utf8();
        match moment.field(letter) {
            Some(field) => out.push_str(&written(field, &directive[..flags], width)),
            None => out.push_str(&rest[at..end]),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    Ok(out)
}

fn written(field: Field, flags: &str, width: usize) -> String {
    let flag = flags.chars().rev().find(|flag| "-_0".contains(*flag));
    let text = match field {
        Field::Number(number, own, fill) => {
            let (own, fill) = match flag {
                Some('-') => (0, ' '),
                Some('_') => (own, ' '),
                Some('0') => (own, '0'),
                _ => (own, fill),
            };
            return filled(&number.to_string(), width.max(own), fill);
        }
        Field::Text(text) => text,
    };
    let text = match flags.chars().rev().find(|flag| "^#".contains(*flag)) {
        Some('^') => text.to_uppercase(),
        // AM and PM become small letters, all other texts capital ones.
        Some(_) if text == "AM" || text == "PM" => text.to_lowercase(),
        Some(_) => text.to_uppercase(),
        None => text,
    };
    filled(&text, width, if flag == Some('0') { '0' } else { ' ' })
}

fn filled(text: &str, width: usize, fill: char) -> String {
    let missing = width.saturating_sub(text.chars().count());
    std::iter::repeat_n(fill, missing).chain(text.chars()).collect()
}

impl Moment {
    fn of(seconds: u64) -> Self {
        let days = (seconds / 86_400) as i64;
        let second_of_day = (seconds % 86_400) as i64;
        let (year, month, day) = civil(days);
        let day_of_year = days - days_before(year);
        Self {
            seconds,
            year,
            month,
            day,
            weekday: (days + 4) % 7,
            day_of_year,
            hour: second_of_day / 3600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }

    /// What a directive stands for; `None` for one that there is not.
    fn field(&self, directive: char) -> Option<Field> {
        let two = |number| Field::Number(number, 2, '0');
        let spaced = |number| Field::Number(number, 2, ' ');
        let text = |text: &str| Field::Text(text.to_string());
        let of = |format: &str| Field::Text(strftime(format, self.seconds).unwrap_or_default());
        let hour = (self.hour + 11) % 12 + 1;
        let (week_year, week) = self.iso_week();
        Some(match directive {
            'Y' => Field::Number(self.year, 0, '0'),
            'C' => two(self.year / 100),
            'y' => two(self.year % 100),
            'G' => Field::Number(week_year, 0, '0'),
            'g' => two(week_year % 100),
            'V' => two(week),
            'U' => two((self.day_of_year + 7 - self.weekday) / 7),
            'W' => two((self.day_of_year + 7 - (self.weekday + 6) % 7) / 7),
            'm' => two(self.month),
            'd' => two(self.day),
            'e' => spaced(self.day),
            'j' => Field::Number(self.day_of_year + 1, 3, '0'),
            'u' => Field::Number((self.weekday + 6) % 7 + 1, 1, '0'),
            'w' => Field::Number(self.weekday, 1, '0'),
            'H' => two(self.hour),
            'I' => two(hour),
            'k' => spaced(self.hour),
            'l' => spaced(hour),
            'M' => two(self.minute),
            'S' => two(self.second),
            's' => Field::Number(self.seconds as i64, 1, '0'),
            'f' => Field::Number(0, 6, '0'),
            'B' => text(MONTHS[self.month as usize - 1]),
            'b' | 'h' => text(&MONTHS[self.month as usize - 1][..3]),
            'A' => text(DAYS[self.weekday as usize]),
            'a' => text(&DAYS[self.weekday as usize][..3]),
            'p' => text(if self.hour < 12 { "AM" } else { "PM" }),
            'P' => text(if self.hour < 12 { "am" } else { "pm" }),
            'c' => of("%a %b %e %H:%M:%S %Y"),
            'x' | 'D' => of("%m/%d/%y"),
            'X' | 'T' => of("%H:%M:%S"),
            'r' => of("%I:%M:%S %p"),
            'R' => of("%H:%M"),
            'F' => of("%Y-%m-%d"),
            'n' => text("\n"),
            't' => text("\t"),
            'z' | 'Z' => text(""),
            '%' => text("%"),
            _ => return None,
        })
    }

    /// Year and week of ISO 8601: week 1 has the year's first Thursday.
    fn iso_week(&self) -> (i64, i64) {
        let monday_based = (self.weekday + 6) % 7;
        let week = (self.day_of_year - monday_based + 10) / 7;
        if week < 1 {
            let days = days_before(self.year) - days_before(self.year - 1);
            return (self.year - 1, (self.day_of_year + days - monday_based + 10) / 7);
        }
        let length = days_before(self.year + 1) - days_before(self.year);
        // The last days of a year belong to the next where its Thursday does.
        if self.day_of_year - monday_based + 3 >= length { (self.year + 1, 1) } else { (self.year, week) }
    }
}

/// Days from 1970-01-01 to the first day of a year.
const fn days_before(year: i64) -> i64 {
    let before = year - 1;
    before * 365 + before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400) - 719_162
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Python 3.11 writes these (`datetime.fromtimestamp(…, timezone.utc)` without its zone).
    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(strftime("%Y-%m-%d %H:%M:%S %a %-d", 951_782_400).unwrap(), "2000-02-29 00:00:00 Tue 29");
        assert_eq!(strftime("%d %B %Y, %I %p", 1_709_251_199).unwrap(), "29 February 2024, 11 PM");
        assert_eq!(strftime("%F %A", 0).unwrap(), "1970-01-01 Thursday");
        assert_eq!(
            strftime("%j %U %W %V %G %g %u %w %C %D", 1_704_067_200).unwrap(),
            "001 00 01 01 2024 24 1 1 20 01/01/24"
        );
        assert_eq!(strftime("%V %G %j", 1_609_459_200).unwrap(), "53 2020 001");
        assert_eq!(strftime("%V %G %U", 1_735_603_200).unwrap(), "01 2025 52");
        assert_eq!(
            strftime("%e|%k|%l|%_d|%-H|%010Y|%^a|%#p|%P", 1_709_251_199).unwrap(),
            "29|23|11|29|23|0000002024|THU|pm|pm"
        );
        assert_eq!(strftime("%Q %", 0).unwrap(), "%Q %");
    }
}
