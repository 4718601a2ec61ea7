//! `[identity.brand]`: the look of the built-in issuer's pages.

use super::Compiler;
use crate::config::Problem;
use crate::config::file::Text;
use crate::config::identity::Brand as Written;
use crate::identity::Brand;
use crate::identity::pages::colour::Colour;

impl Compiler<'_> {
    /// `issuer`: the URL of the built-in issuer. Its host is the default name.
    pub(super) fn brand(
        &mut self,
        written: Option<&Written>,
        issuer: Option<&str>,
    ) -> Option<Brand> {
        let host = || {
            issuer.and_then(|issuer| issuer.parse::<http::Uri>().ok()?.host().map(str::to_owned))
        };
        let default = Written::default();
        let written = written.unwrap_or(&default);
        let name = match &written.name {
            None => host(),
            Some(text) => self.brand_name(text),
        };
        let colour = match &written.colour {
            None => Some(Brand::COLOUR),
            Some(text) => self.colour(text),
        };
        let logo = match &written.logo {
            None => Some(None),
            Some(text) => self.logo(text).map(Some),
        };
        Some(Brand::new(name?, colour?, logo?))
    }

    fn brand_name(&mut self, text: &Text) -> Option<String> {
        let name = text.get_ref().trim();
        if name.is_empty() || name.chars().count() > 60 || name.chars().any(char::is_control) {
            self.error(
                Problem::error(text.span(), "expected a name of 1 to 60 visible characters")
                    .help("write a name such as \"Example\""),
            );
            return None;
        }
        Some(name.to_owned())
    }

    fn colour(&mut self, text: &Text) -> Option<Colour> {
        let colour = Colour::parse(text.get_ref());
        if colour.is_none() {
            self.error(
                Problem::error(text.span(), "not a valid colour")
                    .help("write it as \"#rrggbb\", such as \"#1f4fb8\""),
            );
        }
        colour
    }

    fn logo(&mut self, text: &Text) -> Option<crate::identity::brand::Asset> {
        let bytes = self.read_file(text, "a PNG or SVG file")?;
        match Brand::logo(bytes) {
            Ok(logo) => Some(logo),
            Err(error) => {
                self.error(
                    Problem::error(
                        text.span(),
                        format!("cannot use `{}` as the logo: {error}", text.get_ref()),
                    )
                    .help("name a PNG or SVG file of at most 256 KiB; 480 by 96 pixels are plenty"),
                );
                None
            }
        }
    }
}
