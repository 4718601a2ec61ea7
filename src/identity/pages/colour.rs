//! Colours with readable text: contrast as defined by WCAG 2.2.

use std::fmt;

/// An sRGB colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour {
    red: u8,
    green: u8,
    blue: u8,
}

impl Colour {
    /// Parses `#rrggbb` or `#rgb`.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix('#')?;
        let digit = |at: usize| {
            digits
                .get(at..=at)
                .filter(|digit| *digit != "+")
                .and_then(|digit| u8::from_str_radix(digit, 16).ok())
        };
        let pair = |at: usize| Some(digit(at)? * 16 + digit(at + 1)?);
        match digits.len() {
            3 => Some(Self::new(digit(0)? * 17, digit(1)? * 17, digit(2)? * 17)),
            6 => Some(Self::new(pair(0)?, pair(2)?, pair(4)?)),
            _ => None,
        }
    }

    pub(in crate::identity) const fn new(red: u8, green: u8, blue: u8) -> Self {
        Self { red, green, blue }
    }

    /// The contrast ratio of WCAG 2.2: from 1 (equal) to 21 (black on white).
    pub fn contrast(self, other: Self) -> f64 {
        let (one, another) = (self.luminance(), other.luminance());
        (one.max(another) + 0.05) / (one.min(another) + 0.05)
    }

    /// Black or white, whichever is more readable on this colour. Its contrast is at least 4.58.
    #[must_use]
    pub fn text_on(self) -> Self {
        if self.contrast(WHITE) >= self.contrast(BLACK) { WHITE } else { BLACK }
    }

    /// This colour, or the nearest one towards black or white that has at least this contrast to
    /// `ground`.
    #[must_use]
    pub fn legible_on(self, ground: Self, least: f64) -> Self {
        let towards = ground.text_on();
        (0..=20u16)
            .map(|step| self.mixed(towards, step * 5))
            .find(|colour| colour.contrast(ground) >= least)
            .unwrap_or(towards)
    }

    /// A mix with this percentage of another colour.
    #[must_use]
    pub fn mixed(self, other: Self, percent: u16) -> Self {
        let mix = |one: u8, another: u8| {
            let sum = u16::from(one) * (100 - percent) + u16::from(another) * percent;
            u8::try_from((sum + 50) / 100).unwrap_or(u8::MAX)
        };
        Self::new(
            mix(self.red, other.red),
            mix(self.green, other.green),
            mix(self.blue, other.blue),
        )
    }

    /// The relative luminance of WCAG 2.2.
    fn luminance(self) -> f64 {
        let linear = |part: u8| {
            let part = f64::from(part) / 255.0;
            if part <= 0.040_45 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * linear(self.red) + 0.7152 * linear(self.green) + 0.0722 * linear(self.blue)
    }
}

impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{:02x}{:02x}{:02x}", self.red, self.green, self.blue)
    }
}

const BLACK: Colour = Colour::new(0, 0, 0);

const WHITE: Colour = Colour::new(255, 255, 255);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn colours_are_parsed() {
        for (text, read) in [
            ("#1f4fb8", "#1f4fb8"),
            ("#ABC", "#aabbcc"),
            ("#000", "#000000"),
            ("#ffffff", "#ffffff"),
        ] {
            assert_eq!(Colour::parse(text).unwrap().to_string(), read);
        }
        for text in [
            "",
            "#",
            "1f4fb8",
            "#1f4fb",
            "#1f4fb80",
            "#12345g",
            "red",
            "#é12",
            "#+12",
            "rgb(1,2,3)",
            "#fff;}body{",
        ] {
            assert_eq!(Colour::parse(text), None, "{text}");
        }
    }

    #[test]
    fn contrast_is_computed_as_in_wcag() {
        let contrast = |one: &str, another: &str| {
            Colour::parse(one).unwrap().contrast(Colour::parse(another).unwrap())
        };
        for (one, another, ratio) in [
            ("#000", "#fff", 21.0),
            ("#777", "#fff", 4.48),
            ("#767676", "#fff", 4.54),
            ("#f00", "#fff", 4.0),
        ] {
            assert!(
                (contrast(one, another) - ratio).abs() < 0.01,
                "{one} {another} {}",
                contrast(one, another)
            );
            assert!((contrast(another, one) - ratio).abs() < 0.01);
        }
    }

    proptest! {
        #[test]
        fn text_on_any_colour_is_readable(red: u8, green: u8, blue: u8) {
            let colour = Colour::new(red, green, blue);
            prop_assert!(colour.contrast(colour.text_on()) >= 4.5);
            for ground in [WHITE, BLACK, Colour::new(23, 26, 31)] {
                prop_assert!(colour.legible_on(ground, 4.5).contrast(ground) >= 4.5);
            }
        }
    }
}
