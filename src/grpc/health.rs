//! Is anybody there? `grpc.health.v1`: every service of this server is serving until it stops.

use super::proto::grpc::health::v1::health_check_response::ServingStatus;
use super::proto::grpc::health::v1::health_server::Health;
use super::proto::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse};
use super::server::Stop;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// The health service.
#[derive(Debug, Clone)]
pub struct Healthy {
    services: &'static [&'static str],
    stop: Stop,
}

impl Healthy {
    /// Answers for these services, and with an empty name for all of them, until `stop`.
    pub fn new(services: &'static [&'static str], stop: Stop) -> Healthy {
        Healthy { services, stop }
    }

    fn knows(&self, name: &str) -> bool {
        name.is_empty() || self.services.contains(&name)
    }

    fn now(&self) -> ServingStatus {
        if self.stop.is_asked() { ServingStatus::NotServing } else { ServingStatus::Serving }
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Healthy {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        if !self.knows(&name) {
            return Err(Status::not_found(format!(
                "check: {}: no such service",
                crate::types::quoted(&name)
            )));
        }
        Ok(Response::new(answer(self.now())))
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    /// Tells how it is, and once more when it stops; then the stream ends, so that nobody keeps a stopping server.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = self.knows(&request.into_inner().service);
        let first = if known { self.now() } else { ServingStatus::ServiceUnknown };
        let stop = self.stop.clone();
        let (news, stream) = mpsc::channel(2);
        tokio::spawn(async move {
            if news.send(Ok(answer(first))).await.is_err() {
                return;
            }
            tokio::select! {
                () = news.closed() => {}
                () = stop.asked() => {
                    if known {
                        let _ = news.send(Ok(answer(ServingStatus::NotServing))).await;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
