//! Refusals as HTTP answers.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tunnel_proto::api::ErrorBody;
use tunnel_proto::{Code, Refusal};

/// A refused request. It becomes an [`ErrorBody`] with the status that fits its code.
#[derive(Debug)]
pub(crate) struct ApiError(pub(crate) Refusal);

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl From<Code> for ApiError {
    fn from(code: Code) -> Self {
        Self(code.into())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Refusal { code, detail } = self.0;
        let body = ErrorBody {
            code,
            why: code.why().into(),
            next: code.next_step().into(),
            detail,
        };
        (status(code), axum::Json(body)).into_response()
    }
}

/// Returns the HTTP status of a code. Programs read the code; the status is for proxies and people.
pub(crate) fn status(code: Code) -> StatusCode {
    match code {
        Code::BadRequest | Code::Protocol | Code::BadName | Code::TokenMalformed | Code::EnrolCsr => {
            StatusCode::BAD_REQUEST
        }
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::Deadline => StatusCode::REQUEST_TIMEOUT,
        Code::TokenReplay
        | Code::EnrolTaken
        | Code::ServiceUnknown
        | Code::PolicyStale
        | Code::ApprovalNeedless => StatusCode::CONFLICT,
        Code::TunnelExpired
        | Code::TunnelIdle
        | Code::TunnelClosed
        | Code::ByteLimit
        | Code::ApprovalExpired => StatusCode::GONE,
        Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::Limit => StatusCode::TOO_MANY_REQUESTS,
        Code::Busy | Code::Unavailable | Code::AuditUnavailable | Code::Authoriser => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Code::DeviceOffline | Code::DeviceSilent | Code::RelayUnreachable | Code::TunnelLost => {
            StatusCode::BAD_GATEWAY
        }
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::FORBIDDEN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_an_error_to_http() {
        for &code in Code::ALL {
            let status = status(code);
            assert!(
                status.is_client_error() || status.is_server_error(),
                "{code}: {status}"
            );
        }
    }
}
