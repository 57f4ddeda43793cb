//! The order endpoint of a shop in Rust: axum, redis-rs with a multiplexed connection, jsonwebtoken. See ../README.md.

use std::{collections::HashMap, env, error::Error, fs, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use tokio::runtime::Builder;
use uuid::Uuid;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BODY_BYTES_MAX: usize = 4096;
const QUANTITY_MAX: u32 = 100;
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
const PRICE_MINOR: u64 = 1999;
const LIMIT_PER_BUYER: u32 = 10_000;
const HOLD_MS: i64 = 3_600_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    sku: String,
    quantity: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    items: Vec<Line>,
}

#[derive(Serialize)]
struct PricedLine<'a> {
    sku: &'a str,
    quantity: u32,
    unit_price_minor: u64,
}

#[derive(Serialize)]
struct Accepted<'a> {
    order_id: &'a str,
    sale_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
    status: &'static str,
    items: [PricedLine<'a>; 1],
    total_minor: u64,
    currency: &'static str,
    reserved_at: String,
    expires_at: String,
}

#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    code: &'a str,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
}

#[derive(Deserialize)]
struct Ring {
    keys: HashMap<String, String>,
}

struct Shop {
    redis: MultiplexedConnection,
    script: String, // its SHA-1
    keys: HashMap<String, DecodingKey>,
    validation: Validation,
    sale: String,
}

fn main() -> Result<(), Box<dyn Error>> {
    // One thread needs no runtime that moves tasks between threads; several are Tokio's own use of this variable.
    let one = env::var("TOKIO_WORKER_THREADS").as_deref() == Ok("1");
    let mut runtime = if one { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    runtime.enable_all().build()?.block_on(serve())
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let options: HashMap<String, String> = env::args()
        .skip(1)
        .collect::<Vec<_>>()
        .chunks(2)
        .filter_map(|pair| Some((pair.first()?.trim_start_matches('-').to_owned(), pair.get(1)?.clone())))
        .collect();
    let option = |name: &str| options.get(name).cloned().ok_or(format!("-{name} is missing"));
    let shop = open(&option("redis")?, &option("keys")?, &option("script")?, option("sale")?).await?;
    let app = Router::new()
        .route("/v1/sales/{sale}/orders", post(order))
        .route("/readyz", get(|| async { StatusCode::OK }))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Arc::new(shop));
    let listener = tokio::net::TcpListener::bind(option("listen")?).await?;
    axum::serve(listener, app).await?;
    Ok(())
}

async fn open(redis_url: &str, keys: &str, script: &str, sale: String) -> Result<Shop, Box<dyn Error>> {
    let mut redis = redis::Client::open(redis_url)?.get_multiplexed_async_connection().await?;
    let script = redis::cmd("SCRIPT").arg("LOAD").arg(fs::read_to_string(script)?).query_async(&mut redis).await?;
    let ring: Ring = serde_json::from_str(&fs::read_to_string(keys)?)?;
    let mut known = HashMap::new();
    for (kid, encoded) in ring.keys {
        known.insert(kid, DecodingKey::from_secret(&URL_SAFE_NO_PAD.decode(encoded)?));
    }
    let mut validation = Validation::new(Algorithm::HS256);
    validation.set_audience(&["edge"]);
    validation.set_issuer(&["flashsale"]);
    Ok(Shop { redis, script, keys: known, validation, sale })
}

async fn order(State(shop): State<Arc<Shop>>, Path(sale): Path<String>, headers: HeaderMap, body: Bytes) -> Response {
    let Some(user) = shop.user(&headers) else {
        return refuse(StatusCode::UNAUTHORIZED, "token_invalid");
    };
    let key = headers.get("idempotency-key").and_then(|value| value.to_str().ok()).unwrap_or("");
    if key.is_empty() || key.len() > 64 || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return refuse(StatusCode::BAD_REQUEST, "idempotency_key_missing");
    }
    if sale != shop.sale {
        return refuse(StatusCode::NOT_FOUND, "sale_not_found");
    }
    match parse(&body) {
        Some(line) => shop.reserve(&user, key, &line).await,
        None => refuse(StatusCode::UNPROCESSABLE_ENTITY, "validation_failed"),
    }
}

/// One line: orders of several SKUs are left out (see ../README.md).
fn parse(body: &[u8]) -> Option<Line> {
    let order: Order = serde_json::from_slice(body).ok()?;
    let [line] = <[Line; 1]>::try_from(order.items).ok()?;
    let is_sku = (1..=64).contains(&line.sku.len())
        && line.sku.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    (is_sku && (1..=QUANTITY_MAX).contains(&line.quantity)).then_some(line)
}

impl Shop {
    fn user(&self, headers: &HeaderMap) -> Option<String> {
        let token = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?;
        let key = self.keys.get(&decode_header(token).ok()?.kid?)?;
        Some(decode::<Claims>(token, key, &self.validation).ok()?.claims.sub)
    }

    async fn reserve(&self, user: &str, key: &str, line: &Line) -> Response {
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let order_id = Uuid::now_v7().to_string();
        let mut made = Accepted {
            order_id: &order_id,
            sale_id: &self.sale,
            user_id: Some(user),
            status: "reserved",
            items: [PricedLine { sku: &line.sku, quantity: line.quantity, unit_price_minor: PRICE_MINOR }],
            total_minor: PRICE_MINOR * u64::from(line.quantity),
            currency: "EUR",
            reserved_at: time(now_ms),
            expires_at: time(now_ms + HOLD_MS),
        };
        let Ok(entry) = serde_json::to_vec(&made) else {
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "internal_error");
        };
        let mut call = redis::cmd("EVALSHA");
        call.arg(&self.script)
            .arg(4)
            .arg(format!("stock:{}", line.sku))
            .arg(format!("buyer:{}:{user}", self.sale))
            .arg(format!("holds:{}", self.sale))
            .arg("orders")
            .arg(key)
            .arg(line.quantity)
            .arg(LIMIT_PER_BUYER)
            .arg(&order_id)
            .arg(now_ms + HOLD_MS)
            .arg(entry);
        let mut redis = self.redis.clone();
        let asked = tokio::time::timeout(CALL_TIMEOUT, call.query_async::<Vec<String>>(&mut redis)).await;
        let Ok(Ok(outcome)) = asked else {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "dependency_unavailable");
        };
        made.user_id = None;
        match outcome.first().map(String::as_str) {
            Some("accepted") => accept(&made, false),
            Some("replayed") if outcome.len() == 3 => {
                let ends_ms = outcome[2].parse().unwrap_or(now_ms);
                made.order_id = &outcome[1];
                made.reserved_at = time(ends_ms - HOLD_MS);
                made.expires_at = time(ends_ms);
                accept(&made, true)
            }
            Some("sku_not_found") => refuse(StatusCode::NOT_FOUND, "sku_not_found"),
            Some(code) => refuse(StatusCode::CONFLICT, code),
            None => refuse(StatusCode::SERVICE_UNAVAILABLE, "dependency_unavailable"),
        }
    }
}

fn accept(made: &Accepted, replayed: bool) -> Response {
    let location = [(header::LOCATION, format!("/v1/orders/{}", made.order_id))];
    let mut response = (StatusCode::ACCEPTED, location, Json(made)).into_response();
    if replayed {
        response.headers_mut().insert("idempotency-replayed", header::HeaderValue::from_static("true"));
    }
    response
}

fn refuse(status: StatusCode, code: &str) -> Response {
    let title = status.canonical_reason().unwrap_or("");
    let problem = Problem { r#type: format!("/problems/{code}"), title, status: status.as_u16(), code };
    (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(problem)).into_response()
}

fn time(unix_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(unix_ms).map(|at| format!("{at:.3}")).unwrap_or_default()
}
