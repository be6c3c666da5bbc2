//! Reads what a request brings: bounded, in bounded time, and only after the caller is known.

use std::str::FromStr;
use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tunnel_proto::{Code, Refusal};

use super::error::ApiError;

/// Largest body of an authenticated caller, in bytes (THREATS part 5).
pub(crate) const MAX_BODY: usize = 64 * 1024;
/// Largest body of an enrolment, in bytes (THREATS part 5).
pub(crate) const MAX_ENROL_BODY: usize = 4 * 1024;
/// How long a body may take to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(5);

/// A JSON body. It stands last among a handler's arguments, so that it is read after the caller is authenticated.
///
/// # Security
/// Only `application/json` is taken: a page in a browser cannot send that to another site without asking first.
#[derive(Debug)]
pub(crate) struct Body<T, const MAX: usize = MAX_BODY>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned, const MAX: usize> FromRequest<S> for Body<T, MAX> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        check_head(request.headers(), MAX)?;
        let read = Limited::new(request.into_body(), MAX).collect();
        let body = match tokio::time::timeout(BODY_DEADLINE, read).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(Code::TooLarge.into()),
            Ok(Err(_)) => return Err(Code::BadRequest.into()),
            Err(_) => return Err(Code::Deadline.into()),
        };
        // The place in the text and the name of the field are the caller's own; what stands in it is not repeated.
        serde_json::from_slice(&body)
            .map(Self)
            .map_err(|error| Refusal::new(Code::BadRequest, error.to_string()).into())
    }
}

/// Refuses a body before it is read.
fn check_head(headers: &HeaderMap, max: usize) -> Result<(), ApiError> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if header(CONTENT_TYPE).is_none_or(|kind| kind.split(';').next() != Some("application/json")) {
        return Err(Refusal::new(Code::BadRequest, "the body is not of type `application/json`").into());
    }
    let length = header(CONTENT_LENGTH).and_then(|length| length.parse().ok());
    if length.is_some_and(|length: u64| length > max as u64) {
        return Err(Code::TooLarge.into());
    }
    Ok(())
}

/// Reads a name out of a query.
///
/// # Errors
/// [`Code::BadName`], with the parameter.
pub(crate) fn name<T: FromStr>(parameter: &str, text: Option<&String>) -> Result<Option<T>, Refusal> {
    let bad = |_| Refusal::new(Code::BadName, format!("`{parameter}` is none"));
    text.map(|text| text.parse().map_err(bad)).transpose()
}

/// The query of a request.
#[derive(Debug)]
pub(crate) struct Params<T>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(params)) => Ok(Self(params)),
            Err(_) => Err(Refusal::new(Code::BadRequest, "the query is not of the documented form").into()),
        }
    }
}
