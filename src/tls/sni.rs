//! Chooses a server certificate by the name that the client asks for (SNI, RFC 6066 §3).

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::CertifiedPair;

/// The certificates of a listener, by name. The first one is for every other name, and for clients
/// that send none.
#[derive(Debug)]
pub(super) struct BySni {
    first: Arc<CertifiedKey>,
    /// In lower case; a wildcard without its `*`.
    names: HashMap<String, Arc<CertifiedKey>>,
}

impl BySni {
    /// Where two certificates have a name in common, the earlier one is used.
    pub(super) fn new(first: &CertifiedPair, others: &[CertifiedPair]) -> Self {
        let mut names = HashMap::new();
        for pair in std::iter::once(first).chain(others) {
            for name in &pair.facts.dns_names {
                let name = name.strip_prefix('*').unwrap_or(name);
                names.entry(name.to_owned()).or_insert_with(|| Arc::clone(&pair.key));
            }
        }
        Self { first: Arc::clone(&first.key), names }
    }

    fn find(&self, name: &str) -> &Arc<CertifiedKey> {
        let name = name.to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        // A wildcard stands for one label (RFC 9525 §6.3).
        let wildcard = || name.find('.').and_then(|at| self.names.get(&name[at..]));
        self.names.get(name).or_else(wildcard).unwrap_or(&self.first)
    }
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(hello.server_name().map_or(&self.first, |name| self.find(name))))
    }
}
