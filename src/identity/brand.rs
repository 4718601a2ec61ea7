//! The look of the pages: name, logo and colour.

use std::sync::LazyLock;

use askama::Template;
use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::HeaderValue;

use super::pages::colour::Colour;

/// `[identity.brand]`, checked, with the files that the pages need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Brand {
    /// The name of the site, on pages and in mails.
    pub name: String,
    /// The logo above each page.
    pub logo: Option<Asset>,
    /// The icon of each page: the logo, or a letter if there is none.
    pub icon: Asset,
    /// The style sheet.
    pub style: Asset,
    /// The content security policy of a page that contains the style sheet.
    pub inline_policy: HeaderValue,
}

/// A file that pages refer to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asset {
    /// Its content.
    pub bytes: Bytes,
    /// `Content-Type`
    pub content_type: &'static str,
    /// Changes with the content. A browser may keep a URL that contains it for good.
    pub version: String,
}

/// Why a file cannot be used as a logo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotALogo {
    /// It is of another type.
    #[error("not a PNG or SVG image")]
    Kind,
    /// It is too large: every page waits for it.
    #[error("larger than {} KiB", Brand::LARGEST_LOGO / 1024)]
    TooLarge,
}

/// The style sheet, with the brand's colours for light and dark mode.
#[derive(Template)]
#[template(path = "pages/style.css", escape = "none")]
struct Style {
    light: Palette,
    dark: Palette,
}

/// The brand's colours on one background.
#[derive(Clone, Copy)]
struct Palette {
    /// Buttons.
    accent: Colour,
    /// Buttons under the pointer.
    hover: Colour,
    /// Text on buttons.
    text: Colour,
    /// Borders of buttons, which contrast with the background.
    edge: Colour,
    /// Links.
    link: Colour,
}

impl Brand {
    /// A brand. Use [`Brand::COLOUR`] if no colour is configured.
    pub fn new(name: String, colour: Colour, logo: Option<Asset>) -> Self {
        let palette = |ground: Colour| {
            let text = colour.text_on();
            Palette {
                accent: colour,
                // Away from the text colour, so that contrast rises rather than falls.
                hover: colour.mixed(text.text_on(), 12),
                text,
                edge: colour.legible_on(ground, 3.0),
                // More than the required 4.5: light text on a dark background looks thinner than it
                // is.
                link: colour.legible_on(ground, 5.5),
            }
        };
        let style = Style { light: palette(LIGHT), dark: palette(DARK) };
        // Writing colours into a string cannot fail.
        let style = style.render().unwrap_or_default();
        let icon = logo.clone().unwrap_or_else(|| Asset::letter(&name, colour));
        let digest = STANDARD.encode(digest::digest(&digest::SHA256, style.as_bytes()));
        let inline_policy = format!(
            "default-src 'none'; style-src 'sha256-{digest}'; img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
        );
        Self {
            name,
            logo,
            icon,
            style: Asset::new(Bytes::from(style), "text/css; charset=utf-8"),
            // Base64 and the text above are ASCII.
            inline_policy: HeaderValue::from_str(&inline_policy)
                .unwrap_or(HeaderValue::from_static("default-src 'none'")),
        }
    }

    /// The look of pages where there is no built-in issuer.
    pub fn unnamed() -> &'static Self {
        static UNNAMED: LazyLock<Brand> =
            LazyLock::new(|| Brand::new(String::new(), Brand::COLOUR, None));
        &UNNAMED
    }

    /// The logo in a file. Its type is detected from its content.
    ///
    /// # Errors
    /// The content is not a PNG or SVG image, or larger than [`Brand::LARGEST_LOGO`].
    pub fn logo(bytes: Vec<u8>) -> Result<Asset, NotALogo> {
        if bytes.len() > Self::LARGEST_LOGO {
            return Err(NotALogo::TooLarge);
        }
        let content_type = if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            "image/png"
        } else if std::str::from_utf8(&bytes).is_ok_and(is_svg) {
            "image/svg+xml"
        } else {
            return Err(NotALogo::Kind);
        };
        Ok(Asset::new(Bytes::from(bytes), content_type))
    }

    /// A muted blue.
    pub const COLOUR: Colour = Colour::new(0x1f, 0x4f, 0xb8);

    /// The largest logo, in bytes.
    pub const LARGEST_LOGO: usize = 256 * 1024;
}

impl Asset {
    fn new(bytes: Bytes, content_type: &'static str) -> Self {
        let digest = digest::digest(&digest::SHA256, &bytes);
        let version = URL_SAFE_NO_PAD.encode(&digest.as_ref()[..12]);
        Self { bytes, content_type, version }
    }

    /// An icon: the first letter or digit of the name on a coloured square.
    fn letter(name: &str, colour: Colour) -> Self {
        let first = name.chars().find(|c| c.is_alphanumeric());
        let letter: String = first.into_iter().flat_map(char::to_uppercase).collect();
        let text = colour.text_on();
        let svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 32 32\"><rect width=\"32\" height=\"32\" rx=\"6\" fill=\"{colour}\"/>\
             <text x=\"16\" y=\"23\" text-anchor=\"middle\" font-family=\"sans-serif\" font-size=\"20\" font-weight=\"600\" fill=\"{text}\">{letter}</text></svg>"
        );
        Self::new(Bytes::from(svg), "image/svg+xml")
    }
}

/// Whether the first element is `svg`. Scripts in it cannot run: pages show it as an image, and it
/// is served with a policy that permits nothing.
fn is_svg(text: &str) -> bool {
    let mut rest = text.trim_start_matches('\u{feff}').trim_start();
    loop {
        let end = match rest {
            _ if rest.starts_with("<?") => "?>",
            _ if rest.starts_with("<!--") => "-->",
            _ if rest.starts_with("<!") => ">",
            _ => break,
        };
        let Some((_, after)) = rest.split_once(end) else { return false };
        rest = after.trim_start();
    }
    rest.strip_prefix("<svg")
        .is_some_and(|rest| rest.starts_with([' ', '\t', '\r', '\n', '>', '/']))
}

/// The background of forms, as in the style sheet.
const LIGHT: Colour = Colour::new(0xff, 0xff, 0xff);

/// The same in dark mode.
const DARK: Colour = Colour::new(0x1b, 0x1f, 0x25);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_logo_the_icon_is_a_letter() {
        let icon = |name: &str| {
            let icon = Brand::new(name.to_owned(), Brand::COLOUR, None).icon;
            assert_eq!(icon.content_type, "image/svg+xml");
            String::from_utf8(icon.bytes.to_vec()).unwrap()
        };
        for (name, letter) in [("example", "E"), ("<&\"ärger", "Ä"), ("4 you", "4"), ("<>", "")] {
            let icon = icon(name);
            assert!(is_svg(&icon) && icon.contains(&format!(">{letter}</text>")), "{icon}");
            assert!(
                icon.contains("fill=\"#1f4fb8\"") && icon.contains("fill=\"#ffffff\""),
                "{icon}"
            );
        }
        let logo = Brand::logo(b"<svg/>".to_vec()).unwrap();
        let brand = Brand::new("example".to_owned(), Brand::COLOUR, Some(logo.clone()));
        assert_eq!(brand.icon, logo);
    }

    #[test]
    fn the_type_of_a_logo_is_detected_from_its_content() {
        let kind = |bytes: &[u8]| Brand::logo(bytes.to_vec()).map(|logo| logo.content_type);
        assert_eq!(kind(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), Ok("image/png"));
        for svg in [
            "<svg xmlns='x'/>",
            "\u{feff}<?xml version='1.0'?>\n<!-- made by hand -->\n<!DOCTYPE svg>\n<svg>",
            "  <svg/>",
        ] {
            assert_eq!(kind(svg.as_bytes()), Ok("image/svg+xml"), "{svg}");
        }
        for other in ["", "GIF89a", "<html><svg>", "<svgx>", "<!-- <svg>", "PNG", "<?xml <svg>"] {
            assert_eq!(kind(other.as_bytes()), Err(NotALogo::Kind), "{other}");
        }
        assert_eq!(kind(&[0xff, 0xd8, 0xff]), Err(NotALogo::Kind));
        assert_eq!(kind(&vec![b' '; Brand::LARGEST_LOGO + 1]), Err(NotALogo::TooLarge));
    }

    #[test]
    fn the_style_sheet_has_the_brands_colour_and_the_backgrounds_used_for_contrast() {
        let style =
            |colour: &str| Brand::new("x".to_owned(), Colour::parse(colour).unwrap(), None).style;
        let text = String::from_utf8(style("#ffd400").bytes.to_vec()).unwrap();
        for wanted in [
            format!("--surface: {LIGHT};"),
            format!("--surface: {DARK};"),
            "--accent: #ffd400;".into(),
            "--on-accent: #000000;".into(),
        ] {
            assert!(text.contains(&wanted), "{wanted}: {text}");
        }
        assert_ne!(style("#ffd400").version, style("#ffd401").version);
        assert_eq!(style("#ffd400").version.len(), 16);
    }
}
