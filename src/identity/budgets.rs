//! The built-in limits. There is one set for the process, so that a reload does not reset them.
//!
//! Limits on guessing (failed logins by account and by address, current passwords) always hold, for
//! all routes together. A route's own limit that bounds each address replaces the other limits by
//! address, so that an operator can raise them where many people share an address.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::Identity;
use super::endpoints::Budget;
use crate::limit::{Cell, Count, Exceeded, KeyKind, Limit, Settings};

/// The built-in limits.
#[derive(Debug)]
pub struct Budgets {
    login: Arc<Limit>,
    failures: Arc<Limit>,
    guesses: Arc<Limit>,
    register: Arc<Limit>,
    refresh: Arc<Limit>,
    mail: Arc<Limit>,
    link: Arc<Limit>,
    link_page: Arc<Limit>,
    password: Arc<Limit>,
    session: Arc<Limit>,
    token: Arc<Limit>,
    callback: Arc<Limit>,
}

impl Default for Budgets {
    fn default() -> Self {
        let fewer = NonZeroU32::new(4).expect("four is not zero");
        let few = NonZeroU32::new(5).expect("five is not zero");
        let several = NonZeroU32::new(10).expect("ten is not zero");
        let many = NonZeroU32::new(60).expect("sixty is not zero");
        Self {
            login: limit("identity-login", few, Count::All),
            failures: limit("identity-login-account", few, Count::Failures),
            guesses: limit("identity-login-address", few, Count::Failures),
            register: limit("identity-register", few, Count::All),
            refresh: limit("identity-refresh", many, Count::All),
            mail: limit("identity-mail", few, Count::All),
            link: limit("identity-link", few, Count::All),
            link_page: limit("identity-link-page", many, Count::All),
            password: limit("identity-password", several, Count::All),
            session: limit("identity-password-session", fewer, Count::Failures),
            token: limit("identity-token", several, Count::All),
            callback: limit("identity-callback", many, Count::All),
        }
    }
}

impl Budgets {
    /// Counts a request of a client address. `own` is the limit of the route. `None`: that one
    /// counts instead of the built-in limit.
    pub fn by_address(
        &self,
        budget: Budget,
        client: IpAddr,
        own: Option<&Limit>,
    ) -> Option<(Arc<Limit>, Result<Cell, Exceeded>)> {
        let is_bounded = own.is_some_and(|limit| limit.settings().bounds_each_client());
        let limit = match budget {
            Budget::CurrentPassword => &self.password,
            // Each token that is revoked is remembered for a while.
            Budget::Token => &self.token,
            _ if is_bounded => return None,
            Budget::Login => &self.login,
            Budget::Register => &self.register,
            Budget::Refresh => &self.refresh,
            Budget::Mail => &self.mail,
            Budget::Link => &self.link,
            Budget::LinkPage => &self.link_page,
            Budget::Callback => &self.callback,
        };
        Some((Arc::clone(limit), limit.take_client(client)))
    }

    /// Counts a request as a failed login of a client address, until it turns out not to be one:
    /// whatever the route, so that several routes give no more guesses than one.
    pub fn guess(&self, client: IpAddr) -> (&Arc<Limit>, Result<Cell, Exceeded>) {
        (&self.guesses, self.guesses.take_client(client))
    }

    /// Counts a request as a wrong current password of a session, until it turns out not to be one.
    /// `None`: it is not counted by session.
    ///
    /// A session may fail less often than its account. So whoever has stolen one always leaves a place
    /// to its owner, who can change the password in another.
    pub fn by_session(
        &self,
        budget: Budget,
        sid: &str,
    ) -> Option<(Arc<Limit>, Result<Cell, Exceeded>)> {
        (budget == Budget::CurrentPassword)
            .then(|| (Arc::clone(&self.session), self.session.take_account(sid)))
    }

    /// Counts a request as a failure of `account`, until it turns out to have succeeded. `None`: it
    /// is not counted by account.
    pub fn by_account(
        &self,
        budget: Budget,
        account: &str,
    ) -> Option<(Arc<Limit>, Result<Cell, Exceeded>)> {
        match budget {
            Budget::Login | Budget::CurrentPassword if !account.is_empty() => {
                let (limit, taken) = self.guess_at(account);
                Some((Arc::clone(limit), taken))
            }
            _ => None,
        }
    }

    /// Counts a request as a failure of `account`, until it turns out to have succeeded.
    pub fn guess_at(&self, account: &str) -> (&Arc<Limit>, Result<Cell, Exceeded>) {
        (&self.failures, self.failures.take_account(account))
    }

    /// Describes the limits in force on an identity route with this limit of its own, for `check`.
    pub fn in_force(own: Option<&Limit>) -> Vec<String> {
        let description = own.map(|limit| {
            let Settings { requests, per, count, observe, .. } = limit.settings();
            let what = if *count == Count::Failures { "failures" } else { "requests" };
            let only = if *observe { ", counted and not refused" } else { "" };
            let per = humantime::format_duration(*per);
            (limit.settings(), format!("{requests} {what} in {per} (limit.{}{only})", limit.name()))
        });
        let mut lines = vec![
            "each account: 5 failed logins a minute (built in)".to_owned(),
            "each session: 4 wrong current passwords a minute (built in)".to_owned(),
        ];
        match &description {
            Some((own, description)) if own.bounds_each_client() => {
                lines.push(
                    "each address: 5 failed logins, 10 current passwords and 10 new tokens a minute (built in)"
                        .to_owned(),
                );
                lines.push(format!(
                    "each address: {description}, instead of the other built-in limits by address"
                ));
                return lines;
            }
            Some((own, description)) if own.key == KeyKind::ClientAndAccount => {
                lines.push(format!("each account from each address: {description}"));
            }
            Some((_, description)) => lines.push(format!("each address: {description}")),
            None => {}
        }
        lines.push(
            "each address: 5 logins, 5 registrations, 5 mails, 5 mailed links, 10 current passwords, 10 new tokens, 60 pages of mailed links, 60 returns from a login provider and 60 refreshes a minute (built in)"
                .to_owned(),
        );
        lines
    }

    /// Every limit.
    pub fn all(&self) -> [&Arc<Limit>; 12] {
        [
            &self.login,
            &self.register,
            &self.refresh,
            &self.mail,
            &self.link,
            &self.link_page,
            &self.password,
            &self.session,
            &self.token,
            &self.callback,
            &self.failures,
            &self.guesses,
        ]
    }
}

impl Identity {
    /// Has a limit that is shared count a request for all gateways.
    pub(super) async fn counted(
        &self,
        limit: &Limit,
        taken: Result<Cell, Exceeded>,
    ) -> Result<Cell, Exceeded> {
        let counted = match taken {
            Ok(cell) => limit.confirm(cell).await,
            Err(exceeded) => Err(exceeded),
        };
        counted.inspect_err(|_| {
            self.metrics.rate_limited(limit.name()).inc();
        })
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
        // With every gateway that has a store to share them in.
        shared: true,
        max_clients: 100_000,
    };
    Arc::new(Limit::new(name, settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_in_force_are_described() {
        let own = |key, count, observe| {
            let five = NonZeroU32::new(5).unwrap();
            let settings = limit("x", five, count).settings().clone();
            Limit::new("tries", Settings { key, observe, ..settings })
        };
        let describe = |limit: Option<&Limit>| Budgets::in_force(limit).join("; ");
        let built_in = describe(None);
        assert!(built_in.contains("5 failed logins") && built_in.contains("60 refreshes"));
        for (limit, words, is_instead) in [
            (own(KeyKind::Client, Count::All, false), "each address: 5 requests in 1m", true),
            (own(KeyKind::Client, Count::All, true), "each address: 5 requests in 1m", false),
            (own(KeyKind::Client, Count::Failures, false), "each address: 5 failures in 1m", false),
            (own(KeyKind::ClientAndAccount, Count::All, false), "each account from each", false),
        ] {
            let description = describe(Some(&limit));
            assert!(
                description.contains(words) && description.contains("5 failed logins"),
                "{description}"
            );
            assert_eq!(description.contains("60 refreshes"), !is_instead, "{description}");
            assert!(description.contains("10 current passwords"), "{description}");
        }
    }
}
