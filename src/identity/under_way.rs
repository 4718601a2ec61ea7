//! The messages that are being sent. One recipient's mail server must not hold up everybody's mail: a
//! server in between may wait for it, so messages to one domain take a part of the places only.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};

/// Messages that are being sent.
pub(super) struct UnderWay<T> {
    tasks: JoinSet<T>,
    /// To which domain each goes.
    domains: HashMap<Id, String>,
}

impl<T: Send + 'static> UnderWay<T> {
    /// None.
    pub(super) fn new() -> Self {
        Self { tasks: JoinSet::new(), domains: HashMap::new() }
    }

    /// Whether no more can be sent at present.
    pub(super) fn is_full(&self) -> bool {
        self.tasks.len() >= MOST_AT_ONCE
    }

    /// Whether one more can be sent to this address.
    pub(super) fn has_room_for(&self, email: &str) -> bool {
        !self.is_full() && self.count(domain(email)) < MOST_TO_ONE
    }

    /// The domains to which no more can be sent at present.
    pub(super) fn busy(&self) -> Vec<&str> {
        let mut busy: Vec<&str> = self.domains.values().map(String::as_str).collect();
        busy.sort_unstable();
        busy.dedup();
        busy.retain(|domain| self.count(domain) >= MOST_TO_ONE);
        busy
    }

    fn count(&self, domain: &str) -> usize {
        self.domains.values().filter(|other| *other == domain).count()
    }

    /// Begins to send a message to this address.
    pub(super) fn begin(&mut self, email: &str, sending: impl Future<Output = T> + Send + 'static) {
        let task = self.tasks.spawn(sending);
        self.domains.insert(task.id(), domain(email).to_owned());
    }

    /// Waits for the next one that ends. The outer `None`: there are none; the inner one: it panicked,
    /// as the log says. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Option<Option<T>> {
        let ended = self.tasks.join_next_with_id().await?;
        let id = ended.as_ref().map_or_else(tokio::task::JoinError::id, |(id, _)| *id);
        self.domains.remove(&id);
        Some(ended.ok().map(|(_, done)| done))
    }
}

/// The registered domain of an address: the last two labels of its domain, or three below a suffix
/// such as `co.uk` ([`SHARED`]). All names below it have the same owner.
fn domain(email: &str) -> &str {
    let whole = email.rsplit_once('@').map_or(email, |(_, domain)| domain);
    let mut labels = whole.rsplit('.');
    let (last, second) = (labels.next().unwrap_or_default(), labels.next().unwrap_or_default());
    let is_shared = last.len() == 2 && SHARED.contains(&second);
    let wanted = if is_shared { 3 } else { 2 };
    let dots = whole.rmatch_indices('.').nth(wanted - 1);
    dots.map_or(whole, |(at, _)| &whole[at + 1..])
}

/// Under a country's domain, the labels below which strangers register theirs. Of a domain below
/// another such label, all names count together: their mail waits for each other.
const SHARED: [&str; 22] = [
    "ac", "co", "com", "edu", "gen", "go", "gob", "gov", "gv", "ltd", "me", "mil", "ne", "net",
    "nhs", "nom", "or", "org", "plc", "sch", "school", "web",
];

/// How many messages are sent at a time.
pub(super) const MOST_AT_ONCE: usize = 8;

/// How many of them go to one domain.
const MOST_TO_ONE: usize = 3;

/// The store passes over no more busy domains than that.
const _: () = assert!(MOST_AT_ONCE / MOST_TO_ONE <= crate::store::MOST_BUSY);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_below_a_domain_belong_to_it() {
        for (email, expected) in [
            ("ann@example.com", "example.com"),
            ("ann@mail.eu.example.com", "example.com"),
            ("ann@localhost", "localhost"),
            ("ann@shop.example.co.uk", "example.co.uk"),
            ("ann@example.co.uk", "example.co.uk"),
            ("ann@1.abc.io", "abc.io"),
            ("ann@example.de", "example.de"),
            ("ann@mail.example.de", "example.de"),
        ] {
            assert_eq!(domain(email), expected, "{email}");
        }
    }

    #[tokio::test]
    async fn one_domain_takes_a_part_of_the_places() {
        let mut under_way = UnderWay::new();
        for number in 0..MOST_TO_ONE {
            let email = format!("ann@{number}.example.com");
            assert!(under_way.has_room_for(&email) && under_way.busy().is_empty());
            under_way.begin(&email, async {});
        }
        assert_eq!(under_way.busy(), ["example.com"]);
        assert!(!under_way.has_room_for("bob@example.com"));
        for number in MOST_TO_ONE..MOST_AT_ONCE {
            let email = format!("ann@{number}.test");
            assert!(under_way.has_room_for(&email));
            under_way.begin(&email, async { panic!("on purpose") });
        }
        assert!(under_way.is_full() && !under_way.has_room_for("ann@other.test"));
        let mut panicked = 0;
        while let Some(ended) = under_way.next().await {
            panicked += usize::from(ended.is_none());
        }
        assert_eq!(panicked, MOST_AT_ONCE - MOST_TO_ONE);
        assert!(under_way.has_room_for("bob@example.com") && under_way.busy().is_empty());
    }
}
