//! The HTTP API: JSON in, JSON out, with a document that is made from the code.

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tunnel_proto::Code;
use utoipa::OpenApi;
use utoipa::openapi::security::SecurityScheme;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::error::ApiError;
use crate::control::Control;

mod admin;
mod approvals;
mod audit;
pub(crate) mod caller;
mod carrier;
mod devices;
mod enrolment;
mod error;
mod input;
mod members;
mod notifications;
mod outages;
mod sessions;
mod status;
mod suspensions;
mod tunnels;
mod why;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "tunnel-server",
        description = "Control plane of the tunnel system. Callers prove who they are by a client certificate; what they may \
                       do is for the policy to say. Every refusal has a body with a stable code.",
        license(name = "MIT OR Apache-2.0"),
    ),
    modifiers(&ClientCertificate),
    security(("client certificate" = [])),
)]
struct Document;

/// Describes how callers prove who they are.
struct ClientCertificate;

impl utoipa::Modify for ClientCertificate {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let description = Some("a certificate of an operator of the fleet".to_owned());
        let scheme = SecurityScheme::MutualTls {
            description,
            extensions: None,
            deprecated: None,
        };
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("client certificate", scheme);
    }
}

fn routes() -> OpenApiRouter<Arc<Control>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(status::status))
        .routes(routes!(enrolment::enrol))
        .routes(routes!(devices::list))
        .routes(routes!(devices::describe))
        .routes(routes!(outages::list))
        .routes(routes!(tunnels::list, tunnels::open))
        .routes(routes!(tunnels::describe, tunnels::close))
        .routes(routes!(tunnels::attach))
        .routes(routes!(tunnels::end))
        .routes(routes!(tunnels::cut))
        .routes(routes!(tunnels::rotate))
        .routes(routes!(approvals::list, approvals::ask))
        .routes(routes!(approvals::describe))
        .routes(routes!(approvals::decision))
        .routes(routes!(approvals::approve))
        .routes(routes!(approvals::deny))
        .routes(routes!(approvals::withdraw))
        .routes(routes!(admin::make_enrol_code))
        .routes(routes!(admin::revoke))
        .routes(routes!(suspensions::list, suspensions::suspend))
        .routes(routes!(suspensions::lift))
        .routes(routes!(admin::policy, admin::replace_policy))
        .routes(routes!(admin::check_policy))
        .routes(routes!(why::why))
        .routes(routes!(admin::policy_revisions))
        .routes(routes!(admin::policy_revision))
        .routes(routes!(members::list))
        .routes(routes!(members::add, members::remove))
        .routes(routes!(members::facts, members::change_facts))
        .routes(routes!(audit::page))
        .routes(routes!(notifications::list, notifications::settle))
        .routes(routes!(sessions::list))
        .routes(routes!(carrier::carrier))
}

/// Returns what serves the API.
pub(crate) fn router(control: Arc<Control>) -> Router {
    let (router, _) = routes().split_for_parts();
    let text = document();
    let answer = move || std::future::ready(json(text.clone()));
    router
        .route("/v1/openapi.json", get(answer))
        .fallback(|| std::future::ready(ApiError::from(Code::NotFound)))
        .method_not_allowed_fallback(|| std::future::ready(method_not_allowed()))
        .with_state(control)
}

fn json(text: String) -> Response {
    ([(axum::http::header::CONTENT_TYPE, "application/json")], text).into_response()
}

fn method_not_allowed() -> Response {
    let mut answer = ApiError::from(Code::BadRequest).into_response();
    *answer.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    answer
}

/// Returns the OpenAPI document, as JSON text.
pub fn document() -> String {
    let (_, document) = routes().split_for_parts();
    let mut text = document.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    /// After a wanted change: `cargo run -p tunnel-server -- openapi > docs/openapi.json`.
    #[test]
    fn the_committed_document_is_that_of_the_code() {
        let committed = include_str!("../../docs/openapi.json");
        assert_eq!(
            super::document(),
            committed,
            "`docs/openapi.json` is not what `tunnel-server openapi` prints"
        );
    }
}
