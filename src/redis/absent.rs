//! A build without the cargo feature `redis`: no file can configure it, so there is never one.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::{RedisSettings, SessionUse, SessionsAway, StoredSession};
use crate::clock::Clock;
use crate::limit::{
    Budget, Held, LiveGateways, Place, Returned, SharedStore, Unavailable, Verdict,
};
use crate::telemetry::metrics::Metrics;
use crate::token::RevokedKeys;

/// Never made.
#[derive(Debug)]
pub struct Redis(Infallible);

#[expect(clippy::unused_async, reason = "in the build with the feature they wait")]
impl Redis {
    /// Returns `None`: [`RedisSettings`] cannot be made either.
    pub fn start(_: &RedisSettings, _: &Clock, _: &Metrics) -> Option<Arc<Self>> {
        None
    }

    /// See the build with the feature.
    pub async fn tend(self: Arc<Self>) {
        match self.0 {}
    }

    /// See the build with the feature.
    pub fn will_listen(&self) {
        match self.0 {}
    }

    /// See the build with the feature.
    pub fn count_replicas(&self, _: &Arc<LiveGateways>) {
        match self.0 {}
    }

    /// See the build with the feature.
    pub fn will_write(&self) {
        match self.0 {}
    }

    /// See the build with the feature.
    pub fn learn(self: &Arc<Self>, _: &str, _: &Arc<RevokedKeys>) {
        match self.0 {}
    }

    /// See the build with the feature.
    ///
    /// # Errors
    /// See the build with the feature.
    pub async fn missing_notifications(&self) -> Result<Option<String>, String> {
        match self.0 {}
    }

    /// See the build with the feature.
    pub fn holds_sessions(&self) -> bool {
        match self.0 {}
    }

    /// See the build with the feature.
    ///
    /// # Errors
    /// See the build with the feature.
    pub async fn connect_once(&self) -> Result<(), SessionsAway> {
        match self.0 {}
    }

    /// See the build with the feature.
    ///
    /// # Errors
    /// See the build with the feature.
    pub async fn open_session(&self, _: &StoredSession, _: Duration) -> Result<(), SessionsAway> {
        match self.0 {}
    }

    /// See the build with the feature.
    ///
    /// # Errors
    /// See the build with the feature.
    pub async fn rotate_session(
        &self,
        _: &str,
        _: &str,
        _: SessionUse<'_>,
    ) -> Result<bool, SessionsAway> {
        match self.0 {}
    }

    /// See the build with the feature.
    ///
    /// # Errors
    /// See the build with the feature.
    pub async fn end_session(&self, _: &str, _: &str, _: i64) -> Result<(), SessionsAway> {
        match self.0 {}
    }

    /// See the build with the feature.
    ///
    /// # Errors
    /// See the build with the feature.
    pub async fn session(&self, _: &str) -> Result<Option<StoredSession>, SessionsAway> {
        match self.0 {}
    }

    /// See the build with the feature.
    ///
    /// # Errors
    /// See the build with the feature.
    pub async fn sessions_of(&self, _: &str) -> Result<Vec<StoredSession>, SessionsAway> {
        match self.0 {}
    }

    /// See the build with the feature.
    ///
    /// # Errors
    /// See the build with the feature.
    pub async fn open_sessions(&self) -> Result<Vec<(String, i64)>, SessionsAway> {
        match self.0 {}
    }

    /// See the build with the feature.
    pub fn announce(&self) {
        match self.0 {}
    }

    /// See the build with the feature.
    pub async fn announced(&self) {
        match self.0 {}
    }

    /// See the build with the feature.
    pub fn problem(&self) -> Option<String> {
        match self.0 {}
    }
}

impl SharedStore for Redis {
    fn take<'a>(
        &'a self,
        _: &'a [Budget],
    ) -> Pin<Box<dyn Future<Output = Result<Verdict, Unavailable>> + Send + 'a>> {
        match self.0 {}
    }

    fn give_back(&self, _: Vec<Returned>, _: Option<Held>) {
        match self.0 {}
    }

    fn is_available(&self) -> bool {
        match self.0 {}
    }

    fn place(&self) -> Place {
        match self.0 {}
    }
}
