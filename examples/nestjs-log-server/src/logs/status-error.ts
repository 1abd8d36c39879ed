import { status } from '@grpc/grpc-js';

/** An error that ends a call with a status of gRPC's. */
export class StatusError extends Error {
  constructor(
    readonly code: status,
    readonly details: string,
  ) {
    super(details);
  }
}
