//! The requests of an attack.

mod matrix;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use uuid::Uuid;

use super::oracle::{Credentials, Oracle};
use super::targets::{across, spellings};
use crate::explain::Explanation;
use crate::gateway::route::{Destination, HostPattern, Route, Segment};
use crate::identity::Mount;

/// What a case tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// An ordinary request.
    Control,
    /// A path with two meanings.
    Path,
    /// An identity header, in some spelling.
    Identity,
    /// A field that names another target or method, or another client.
    Field,
    /// A host with two meanings.
    Host,
    /// Credentials with two meanings, or that the application must not see.
    Credentials,
    /// An upgrade, to WebSocket or another protocol.
    Upgrade,
    /// A second request inside the first.
    Smuggling,
}

impl Family {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Path => "path",
            Self::Identity => "identity",
            Self::Field => "field",
            Self::Host => "host",
            Self::Credentials => "credentials",
            Self::Upgrade => "upgrade",
            Self::Smuggling => "smuggling",
        }
    }
}

/// One request, and what must not come of it.
#[derive(Debug)]
pub struct Case {
    /// What it tries.
    pub family: Family,
    /// Its host.
    pub host: String,
    /// Its target.
    pub target: String,
    /// What else is special.
    what: String,
    /// The decision of the gateway.
    pub expected: Box<Explanation>,
    pub(super) credentials: Credentials,
    pub(super) bytes: Vec<u8>,
    /// Shown by an application that echoes.
    pub(super) mark: String,
    /// What must not reach the application: its name, and a value that is only there.
    pub(super) secrets: Vec<(String, String)>,
    /// Whether a second request follows in the same bytes.
    pub(super) has_hidden: bool,
    /// The protocols of an upgrade that must not pass as it is.
    pub(super) protocols: Vec<&'static str>,
}

impl Case {
    /// The request in words.
    pub fn shown(&self) -> String {
        let who = if self.credentials == Credentials::Token { ", with the token" } else { "" };
        let what = if self.what.is_empty() { String::new() } else { format!(", {}", self.what) };
        format!("GET {} of {}{who}{what}", self.target.escape_debug(), self.host)
    }
}

/// A request to be made.
#[derive(Clone, Debug)]
struct Draft {
    family: Family,
    host: String,
    /// Sent as `Host`, if not the host itself.
    hosts: Option<Vec<String>>,
    target: String,
    what: String,
    credentials: Credentials,
    /// Fields that the decision depends on.
    decisive: Vec<(String, String)>,
    /// Fields that no decision may depend on.
    idle: Vec<(String, String)>,
    secrets: Vec<(String, String)>,
    /// What follows the head.
    after: String,
    has_hidden: bool,
    protocols: Vec<&'static str>,
}

impl Draft {
    fn new(family: Family, spot: &Spot, target: &str) -> Self {
        Self {
            family,
            host: spot.host.clone(),
            hosts: None,
            target: target.to_owned(),
            what: String::new(),
            credentials: Credentials::None,
            decisive: Vec::new(),
            idle: Vec::new(),
            secrets: Vec::new(),
            after: String::new(),
            has_hidden: false,
            protocols: Vec::new(),
        }
    }

    fn what(mut self, what: impl Into<String>) -> Self {
        self.what = what.into();
        self
    }

    fn decisive(mut self, name: &str, value: &str) -> Self {
        self.decisive.push((name.to_owned(), value.to_owned()));
        self
    }

    fn idle(mut self, name: &str, value: &str) -> Self {
        self.idle.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A field whose value must not reach the application.
    fn secret(mut self, name: &str, value: &str) -> Self {
        self.secrets.push((name.to_owned(), value.to_owned()));
        self.idle(name, value)
    }

    fn with_token(mut self) -> Self {
        self.credentials = Credentials::Token;
        self
    }
}

/// A path of a route that can be attacked.
#[derive(Clone, Debug)]
struct Spot {
    host: String,
    /// The path of the route itself, such as `/pages/`.
    root: String,
    /// A path below it, if it has any.
    below: String,
    /// Whether a request gets in without credentials.
    is_open: bool,
    /// Whether a request gets in with the token, but not without.
    is_mine: bool,
}

/// Every request of an attack.
pub(super) struct Corpus<'o> {
    oracle: &'o Oracle<'o>,
    spots: Vec<Spot>,
    controls: Vec<Case>,
    nonce: String,
}

impl<'o> Corpus<'o> {
    /// Chooses what to attack.
    pub(super) fn new(oracle: &'o Oracle<'o>) -> Self {
        let spots = oracle.snapshot.routes.routes().iter().filter_map(|route| spot(oracle, route));
        let mut nonce = Uuid::new_v4().simple().to_string();
        nonce.truncate(16);
        let mut corpus = Self { oracle, spots: spots.collect(), controls: Vec::new(), nonce };
        let mut controls = Vec::new();
        for spot in &corpus.spots {
            let draft = Draft::new(Family::Control, spot, &spot.root);
            if spot.is_open {
                controls.push(draft);
            } else if spot.is_mine {
                controls.push(draft.with_token());
            }
        }
        corpus.controls =
            controls.into_iter().enumerate().map(|(at, draft)| corpus.case(draft, at)).collect();
        corpus
    }

    pub(super) fn is_empty(&self) -> bool {
        self.spots.is_empty()
    }

    /// Ordinary requests, which get in.
    pub(super) fn controls(&self) -> &[Case] {
        &self.controls
    }

    /// The attack.
    pub(super) fn cases(&self) -> Vec<Case> {
        let mut drafts = self.paths();
        drafts.extend(self.matrix());
        let first = self.controls.len();
        let cases = drafts.into_iter().enumerate();
        let cases = cases.map(|(at, draft)| self.case(draft, first + at));
        // What the gateway lets in is an attack only if it carries something.
        cases.filter(|case| !case.is_ordinary()).collect()
    }

    /// Targets that lead from open paths to guarded ones, and other spellings of these.
    fn paths(&self) -> Vec<Draft> {
        let mut drafts = Vec::new();
        let mut crossed: Vec<&str> = Vec::new();
        for guarded in self.spots.iter().filter(|spot| !spot.is_open) {
            let path = if guarded.root == "/" { &guarded.below } else { &guarded.root };
            let mut targets = vec![guarded.root.clone()];
            targets.extend(spellings(path));
            if !crossed.contains(&guarded.host.as_str()) {
                crossed.push(&guarded.host);
                let open = self.spots.iter().find(|spot| spot.is_open && spot.host == guarded.host);
                targets.extend(across(open.map_or("/x", |open| &open.below), path));
            }
            for target in targets {
                let draft = Draft::new(Family::Path, guarded, &target);
                if guarded.is_mine {
                    drafts.push(draft.clone().with_token());
                }
                drafts.push(draft);
            }
        }
        drafts
    }

    fn case(&self, draft: Draft, number: usize) -> Case {
        let mark = format!("{}-m{number}", self.nonce);
        let hosts = draft.hosts.clone().unwrap_or_else(|| vec![draft.host.clone()]);
        let token = self.oracle.token.as_ref().map(|(token, _)| token.as_str());
        let mut head = format!("GET {} HTTP/1.1\r\n", draft.target);
        let mut field = |name: &str, value: &str| head.extend([name, ": ", value, "\r\n"]);
        for host in &hosts {
            field("Host", host);
        }
        field("X-Attack-Mark", &mark);
        if let (Credentials::Token, Some(token)) = (draft.credentials, token) {
            field("Authorization", &format!("Bearer {token}"));
        }
        for (name, value) in draft.decisive.iter().chain(&draft.idle) {
            field(name, value);
        }
        if !draft.idle.iter().any(|(name, _)| name.eq_ignore_ascii_case("connection")) {
            field("Connection", if draft.has_hidden { "keep-alive" } else { "close" });
        }
        let expected = self.expected(&draft, &hosts);
        Case {
            family: draft.family,
            host: draft.host,
            target: draft.target,
            what: draft.what,
            expected: Box::new(expected),
            credentials: draft.credentials,
            bytes: format!("{head}\r\n{}", draft.after).into_bytes(),
            mark,
            secrets: draft.secrets,
            has_hidden: draft.has_hidden,
            protocols: draft.protocols,
        }
    }

    fn expected(&self, draft: &Draft, hosts: &[String]) -> Explanation {
        let mut headers = HeaderMap::new();
        let is_absolute = draft.target.contains("://");
        for host in hosts.iter().filter(|_| !is_absolute) {
            if let Ok(value) = HeaderValue::from_str(host) {
                headers.append(header::HOST, value);
            }
        }
        for (name, value) in &draft.decisive {
            let name = HeaderName::from_bytes(name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
                headers.append(name, value);
            }
        }
        self.oracle.decide(&draft.host, &draft.target, headers, draft.credentials)
    }
}

impl Case {
    fn is_ordinary(&self) -> bool {
        let carries_nothing = self.secrets.is_empty()
            && self.protocols.is_empty()
            && self.credentials == Credentials::None;
        self.expected.allow && (carries_nothing || self.family == Family::Path)
    }
}

fn spot(oracle: &Oracle<'_>, route: &Route) -> Option<Spot> {
    let pattern = &route.pattern;
    let is_here = if oracle.via.is_some() {
        matches!(route.destination, Destination::External)
    } else {
        route.destination.upstream().is_some()
    };
    if !is_here || !pattern.methods.contain(&Method::GET) {
        return None;
    }
    let host = match &pattern.host {
        HostPattern::Exact(name) => name.to_string(),
        HostPattern::Suffix(suffix) => format!("portcullis-attack{suffix}"),
        HostPattern::Any => oracle.host.clone(),
    };
    let mount = Mount::new(pattern.segments.iter().map(|segment| match segment {
        Segment::Literal(text) => &**text,
        Segment::Any => "x",
    }));
    let (root, below) = if pattern.subtree {
        (mount.path("/"), mount.path("/portcullis-attack"))
    } else {
        (mount.path(""), mount.path(""))
    };
    let decide = |credentials| oracle.decide(&host, &root, HeaderMap::new(), credentials);
    let is_open = decide(Credentials::None).allow;
    let is_mine = !is_open && oracle.token.is_some() && decide(Credentials::Token).allow;
    Some(Spot { host, root, below, is_open, is_mine })
}
