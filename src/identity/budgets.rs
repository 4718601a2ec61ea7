//! The limits that hold where a route names none. One for the process: a reload gives nobody new
//! tries.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::endpoints::Budget;
use crate::limit::{Cell, Count, Exceeded, KeyKind, Limit, Settings};

/// The built-in limits.
#[derive(Debug)]
pub struct Budgets {
    login: Arc<Limit>,
    failures: Arc<Limit>,
    register: Arc<Limit>,
    refresh: Arc<Limit>,
    mail: Arc<Limit>,
    link: Arc<Limit>,
}

impl Default for Budgets {
    fn default() -> Self {
        let few = NonZeroU32::new(5).expect("five is not zero");
        let many = NonZeroU32::new(60).expect("sixty is not zero");
        Self {
            login: limit("identity-login", few, Count::All),
            failures: limit("identity-login-account", few, Count::Failures),
            register: limit("identity-register", few, Count::All),
            refresh: limit("identity-refresh", many, Count::All),
            mail: limit("identity-mail", few, Count::All),
            link: limit("identity-link", few, Count::All),
        }
    }
}

impl Budgets {
    /// Counts a request of an address, before its body is read. `None`: it is not counted by
    /// address.
    pub fn by_address(
        &self,
        budget: Budget,
        client: IpAddr,
    ) -> Option<(Arc<Limit>, Result<Cell, Exceeded>)> {
        let limit = match budget {
            Budget::Login => &self.login,
            Budget::Register => &self.register,
            Budget::Refresh => &self.refresh,
            Budget::Mail => &self.mail,
            Budget::Link => &self.link,
            Budget::CurrentPassword => return None,
        };
        Some((Arc::clone(limit), limit.take_client(client)))
    }

    /// Counts a request as a failure of `account`, until it turns out to be none. `None`: it is not
    /// counted by account.
    pub fn by_account(
        &self,
        budget: Budget,
        account: &str,
    ) -> Option<(Arc<Limit>, Result<Cell, Exceeded>)> {
        match budget {
            Budget::Login | Budget::CurrentPassword if !account.is_empty() => {
                Some((Arc::clone(&self.failures), self.failures.take_account(account)))
            }
            _ => None,
        }
    }

    /// Every limit.
    pub fn all(&self) -> [&Arc<Limit>; 6] {
        [&self.login, &self.failures, &self.register, &self.refresh, &self.mail, &self.link]
    }
}

fn limit(name: &str, requests: NonZeroU32, count: Count) -> Arc<Limit> {
    let settings = Settings {
        requests,
        per: Duration::from_mins(1),
        ipv6_prefix: 64,
        count,
        key: KeyKind::Client,
        observe: false,
        max_clients: 100_000,
    };
    Arc::new(Limit::new(name, settings))
}
