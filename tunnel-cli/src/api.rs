//! The server's API as the commands call it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tunnel_net::ServerAddr;
use tunnel_net::tls;
use tunnel_proto::api::*;
use tunnel_proto::names::GroupName;
use tunnel_proto::{ApprovalId, Code, DeviceId, Refusal, TunnelId};

use crate::commands::members::Member;
use crate::home::Login;
use crate::http::{ANSWER, Connection, HttpError, LIST, ONE};

/// Devices in one answer.
const DEVICES: usize = 5000;

/// How long a request for a tunnel's end waits before it is sent again: a little longer than the server lets it wait. The
/// answer of a connection that was lost in an outage never comes.
const END: Duration = Duration::from_secs(270);

/// What came of waiting for a tunnel's end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum News {
    /// The server stopped waiting; the tunnel goes on.
    Nothing,
    /// The operator's leg is to bind with a new key: this token gets it.
    Rotate(String),
    /// The tunnel has ended, and why.
    Ended(Refusal),
}

/// A caller of the API, with one connection that is made when it is needed.
#[derive(Debug)]
pub struct Api {
    server: ServerAddr,
    tls: Arc<rustls::ClientConfig>,
    connection: Option<Connection>,
}

impl Api {
    /// Makes a caller that proves who it is.
    pub fn new(login: &Login) -> Self {
        Self::with_tls(
            login.server.clone(),
            tls::api_client(&login.ends(), Some(&login.credentials)),
        )
    }

    /// Makes a caller with TLS settings of its own.
    pub fn with_tls(server: ServerAddr, tls: rustls::ClientConfig) -> Self {
        Self {
            server,
            tls: Arc::new(tls),
            connection: None,
        }
    }

    /// Makes a second caller with the same settings and a connection of its own.
    #[must_use]
    pub fn again(&self) -> Self {
        Self {
            server: self.server.clone(),
            tls: self.tls.clone(),
            connection: None,
        }
    }

    /// Returns the address that answered last.
    pub fn proven(&self) -> Option<IpAddr> {
        self.connection.as_ref().and_then(Connection::server_ip)
    }

    /// Returns the TLS settings, which the WebSocket carrier shares.
    pub fn tls(&self) -> Arc<rustls::ClientConfig> {
        self.tls.clone()
    }

    /// Asks how the server is.
    ///
    /// # Errors
    /// Tells why there is no answer, as every function here does.
    pub async fn status(&mut self) -> Result<Status, HttpError> {
        self.get("/v1/status", ONE).await
    }

    /// Turns a code into a certificate.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn enrol(&mut self, request: &EnrolRequest) -> Result<EnrolAnswer, HttpError> {
        self.send(Method::POST, "/v1/enrol", Some(request), ONE).await
    }

    /// Lists the devices that the caller may see.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn devices(&mut self) -> Result<Vec<Device>, HttpError> {
        let mut devices: Vec<Device> = Vec::new();
        loop {
            // The name is put into an address, so it must be one.
            let after = devices.last().and_then(|last| last.id.parse().ok());
            let after = after.map_or_else(String::new, |after: DeviceId| format!("&after={after}"));
            let page: Vec<Device> = self
                .get(&format!("/v1/devices?limit={DEVICES}{after}"), LIST)
                .await?;
            let goes_on =
                page.len() == DEVICES && page.first().map(|d| &d.id) > devices.last().map(|d| &d.id);
            devices.extend(page);
            if !goes_on {
                return Ok(devices);
            }
        }
    }

    /// Shows one device.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn device(&mut self, id: &DeviceId) -> Result<Device, HttpError> {
        self.get(&format!("/v1/devices/{id}"), ONE).await
    }

    /// Lists outages of one device or of all, those of the last `span` if one is given.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn outages(
        &mut self,
        device: Option<&DeviceId>,
        span: Option<Duration>,
    ) -> Result<Vec<Outage>, HttpError> {
        let device = device.map(|id| format!("device={id}"));
        let span = span.map(|span| format!("last_secs={}", span.as_secs()));
        let query: Vec<_> = device.into_iter().chain(span).collect();
        self.get(&format!("/v1/outages?{}", query.join("&")), LIST).await
    }

    /// Asks for a tunnel.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn open(&mut self, request: &OpenTunnel) -> Result<OpenedTunnel, HttpError> {
        self.send(Method::POST, "/v1/tunnels", Some(request), ONE).await
    }

    /// Redeems the source token.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn attach(
        &mut self,
        id: TunnelId,
        request: &AttachTunnel,
    ) -> Result<AttachedTunnel, HttpError> {
        self.send(
            Method::POST,
            &format!("/v1/tunnels/{id}/attach"),
            Some(request),
            ONE,
        )
        .await
    }

    /// Lists tunnels.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn tunnels(&mut self, all: bool, limit: u32) -> Result<Vec<Tunnel>, HttpError> {
        self.get(&format!("/v1/tunnels?all={all}&limit={limit}"), LIST)
            .await
    }

    /// Shows one tunnel.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn tunnel(&mut self, id: TunnelId) -> Result<Tunnel, HttpError> {
        self.get(&format!("/v1/tunnels/{id}"), ONE).await
    }

    /// Closes a tunnel.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn close(&mut self, id: TunnelId) -> Result<(), HttpError> {
        let path = format!("/v1/tunnels/{id}");
        self.request(Method::DELETE, &path, None, ONE, ANSWER)
            .await
            .map(drop)
    }

    /// Cuts tunnels of anybody.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn cut(&mut self, request: &CutTunnels) -> Result<CutReport, HttpError> {
        self.send(Method::POST, "/v1/cuts", Some(request), LIST).await
    }

    /// Gives the legs of a live tunnel fresh keys.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn rotate(&mut self, id: TunnelId, request: &RotateTunnel) -> Result<RotatedTunnel, HttpError> {
        self.send(
            Method::POST,
            &format!("/v1/tunnels/{id}/rotate"),
            Some(request),
            ONE,
        )
        .await
    }

    /// Waits for news of a tunnel: that it has ended, or that its leg is to have another key.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn wait_end(&mut self, id: TunnelId) -> Result<News, HttpError> {
        let path = format!("/v1/tunnels/{id}/end");
        let body = self.request(Method::GET, &path, None, ONE, END).await?;
        let TunnelEnd { tunnel, rotate } =
            serde_json::from_slice(&body).map_err(|error| unreadable(&error))?;
        if tunnel.state != "ended" {
            return Ok(rotate.map_or(News::Nothing, News::Rotate));
        }
        let code = tunnel
            .end_reason
            .as_deref()
            .map_or(Code::TunnelClosed, Code::from_text);
        Ok(News::Ended(code.into()))
    }

    /// Asks for an approval.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn ask_approval(&mut self, request: &AskApproval) -> Result<Approval, HttpError> {
        self.send(Method::POST, "/v1/approvals", Some(request), ONE).await
    }

    /// Lists the approvals that the caller may see; those that have ended too if `all`.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn approvals(&mut self, all: bool) -> Result<Vec<Approval>, HttpError> {
        self.get(&format!("/v1/approvals?all={all}"), LIST).await
    }

    /// Shows one approval.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn approval(&mut self, id: ApprovalId) -> Result<Approval, HttpError> {
        self.get(&format!("/v1/approvals/{id}"), ONE).await
    }

    /// Waits until an approval is decided, or the server stops waiting.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn await_decision(&mut self, id: ApprovalId) -> Result<Approval, HttpError> {
        let path = format!("/v1/approvals/{id}/decision");
        let body = self.request(Method::GET, &path, None, ONE, END).await?;
        serde_json::from_slice(&body).map_err(|error| unreadable(&error))
    }

    /// Decides about an approval: `verb` is `approve` or `deny`.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn decide_approval(
        &mut self,
        id: ApprovalId,
        verb: &str,
        request: &DecideApproval,
    ) -> Result<Approval, HttpError> {
        let path = format!("/v1/approvals/{id}/{verb}");
        self.send(Method::POST, &path, Some(request), ONE).await
    }

    /// Takes an approval back.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn withdraw_approval(
        &mut self,
        id: ApprovalId,
        request: &DecideApproval,
    ) -> Result<WithdrawnApproval, HttpError> {
        let path = format!("/v1/approvals/{id}/withdraw");
        self.send(Method::POST, &path, Some(request), ONE).await
    }

    /// Makes an enrolment code.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn enrol_code(&mut self, request: &MakeEnrolCode) -> Result<MadeEnrolCode, HttpError> {
        self.send(Method::POST, "/v1/enrol-codes", Some(request), ONE)
            .await
    }

    /// Takes an identity's trust away.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn revoke(&mut self, request: &Revoke) -> Result<Revoked, HttpError> {
        self.send(Method::POST, "/v1/revocations", Some(request), ONE)
            .await
    }

    /// Puts a device into quarantine, or disables an operator.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn suspend(&mut self, request: &Suspend) -> Result<Revoked, HttpError> {
        self.send(Method::POST, "/v1/suspensions", Some(request), ONE)
            .await
    }

    /// Releases a device, or enables an operator again.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn lift_suspension(&mut self, request: &Suspend) -> Result<Lifted, HttpError> {
        self.send(Method::POST, "/v1/suspensions/lift", Some(request), ONE)
            .await
    }

    /// Shows the policy in force.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn policy(&mut self) -> Result<PolicyState, HttpError> {
        self.get("/v1/policy", LIST).await
    }

    /// Checks a policy without effect.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn policy_check(&mut self, request: &PolicyText) -> Result<PolicyState, HttpError> {
        self.send(Method::POST, "/v1/policy/check", Some(request), LIST)
            .await
    }

    /// Puts a policy in force.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn policy_apply(&mut self, request: &PolicyText) -> Result<PolicyState, HttpError> {
        self.send(Method::PUT, "/v1/policy", Some(request), LIST).await
    }

    /// Lists the policies that are or were in force.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn policy_revisions(&mut self) -> Result<Vec<PolicyRevision>, HttpError> {
        self.get("/v1/policy/revisions", LIST).await
    }

    /// Shows a policy that is or was in force.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn policy_revision(&mut self, revision: u64) -> Result<PolicyRevision, HttpError> {
        self.get(&format!("/v1/policy/revisions/{revision}"), LIST).await
    }

    /// Lists the groups with their members.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn groups(&mut self) -> Result<Vec<GroupMember>, HttpError> {
        self.get("/v1/groups", LIST).await
    }

    /// Puts a member into a group, or takes it out.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn change_group(
        &mut self,
        group: &GroupName,
        member: &Member,
        add: bool,
    ) -> Result<Changed, HttpError> {
        let method = if add { Method::PUT } else { Method::DELETE };
        self.send(method, &format!("/v1/groups/{group}/{member}"), None::<&()>, ONE)
            .await
    }

    /// Shows the facts about a device.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn facts(&mut self, device: &DeviceId) -> Result<DeviceFacts, HttpError> {
        self.get(&format!("/v1/devices/{device}/facts"), ONE).await
    }

    /// Sets and removes facts about a device.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn change_facts(
        &mut self,
        device: &DeviceId,
        request: &ChangeFacts,
    ) -> Result<Changed, HttpError> {
        self.send(
            Method::PATCH,
            &format!("/v1/devices/{device}/facts"),
            Some(request),
            ONE,
        )
        .await
    }

    /// Asks why a service may be used, or not.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn why(&mut self, request: &AskWhy) -> Result<Why, HttpError> {
        self.send(Method::POST, "/v1/why", Some(request), LIST).await
    }

    /// Reads a page of the audit chain; `filter` is none or begins with `&`.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn audit(&mut self, filter: &str, after: u64, limit: u32) -> Result<AuditPage, HttpError> {
        self.get(&format!("/v1/audit?after={after}&limit={limit}{filter}"), LIST)
            .await
    }

    /// Shows how far notifications are.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn notifications(&mut self) -> Result<Notifications, HttpError> {
        self.get("/v1/notifications", LIST).await
    }

    /// Settles notifications that were given up.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn settle_notifications(
        &mut self,
        request: &SettleNotifications,
    ) -> Result<SettledNotifications, HttpError> {
        self.send(Method::POST, "/v1/notifications", Some(request), ONE)
            .await
    }

    /// Lists sessions that were; `query` is none or begins with `&`.
    ///
    /// # Errors
    /// Tells why not.
    pub async fn sessions(&mut self, query: &str, limit: u32) -> Result<Vec<Session>, HttpError> {
        self.get(&format!("/v1/sessions?limit={limit}{query}"), LIST)
            .await
    }

    /// Calls a path and reads its answer.
    ///
    /// # Errors
    /// Tells why there is none.
    pub async fn get<T: DeserializeOwned>(&mut self, path: &str, limit: usize) -> Result<T, HttpError> {
        self.send(Method::GET, path, None::<&()>, limit).await
    }

    async fn send<B: Serialize, T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&B>,
        limit: usize,
    ) -> Result<T, HttpError> {
        let body = body
            .map(serde_json::to_vec)
            .transpose()
            .map_err(|error| unreadable(&error))?;
        let answer = self.request(method, path, body, limit, ANSWER).await?;
        serde_json::from_slice(&answer).map_err(|error| unreadable(&error))
    }

    /// Sends a request on the connection, or on a new one if there is none.
    ///
    /// # Errors
    /// Tells why there is no answer.
    pub async fn request(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        limit: usize,
        deadline: Duration,
    ) -> Result<bytes::Bytes, HttpError> {
        let call = async {
            if !self.connection.as_ref().is_some_and(Connection::is_open) {
                self.connection = Some(Connection::open(&self.server, self.tls.clone()).await?);
            }
            let Some(connection) = &mut self.connection else {
                return Err(HttpError::Failed {
                    code: Code::Internal,
                    detail: None,
                });
            };
            connection.request(method, path, body, limit).await
        };
        match tokio::time::timeout(deadline, call).await {
            Ok(result) => result,
            Err(_) => {
                // An answer that comes later must not be taken for that of the next request.
                self.connection = None;
                Err(HttpError::Failed {
                    code: Code::Deadline,
                    detail: None,
                })
            }
        }
    }
}

fn unreadable(error: &serde_json::Error) -> HttpError {
    HttpError::Failed {
        code: Code::Protocol,
        detail: Some(error.to_string()),
    }
}
