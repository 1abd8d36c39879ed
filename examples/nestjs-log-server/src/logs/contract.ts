import path from 'node:path';
import { fileURLToPath } from 'node:url';
import type { ServerDuplexStream } from '@grpc/grpc-js';
import type { Options } from '@grpc/proto-loader';
import type { StreamLogsRequest__Output } from '../gen/ottoscaler/logs/v1/StreamLogsRequest.js';
import type { StreamLogsResponse } from '../gen/ottoscaler/logs/v1/StreamLogsResponse.js';

/** The contract is the project's own proto file; the build copies it beside the program. */

export const packageName = 'ottoscaler.logs.v1';
export const serviceName = 'LogService';

const protoRoot = fileURLToPath(new URL('../../proto', import.meta.url));
export const protoFile = path.join(protoRoot, 'ottoscaler/logs/v1/logs.proto');

/**
 * How messages look in JavaScript; `npm run generate` makes the types of src/gen for just these.
 * Numbers hold sequence numbers and byte counts up to 2^53, at half the cost of strings. Without
 * keepCase, fields are in camel case.
 */
export const loader: Options = {
  longs: Number,
  defaults: true,
  arrays: true,
  oneofs: true,
  includeDirs: [protoRoot],
};

export type { Batch__Output as Batch } from '../gen/ottoscaler/logs/v1/Batch.js';
export type { ContainerEnd__Output as ContainerEnd } from '../gen/ottoscaler/logs/v1/ContainerEnd.js';
export type { FinishWorkerRequest__Output as FinishWorkerRequest } from '../gen/ottoscaler/logs/v1/FinishWorkerRequest.js';
export type { FinishWorkerResponse } from '../gen/ottoscaler/logs/v1/FinishWorkerResponse.js';
export type { Limits } from '../gen/ottoscaler/logs/v1/Limits.js';
export type { Position } from '../gen/ottoscaler/logs/v1/Position.js';
export type { RegisterWorkerRequest__Output as RegisterWorkerRequest } from '../gen/ottoscaler/logs/v1/RegisterWorkerRequest.js';
export type { RegisterWorkerResponse } from '../gen/ottoscaler/logs/v1/RegisterWorkerResponse.js';
export type { StreamLogsRequest__Output as StreamLogsRequest } from '../gen/ottoscaler/logs/v1/StreamLogsRequest.js';
export type { StreamLogsResponse } from '../gen/ottoscaler/logs/v1/StreamLogsResponse.js';
export type { Timestamp__Output as Timestamp } from '../gen/google/protobuf/Timestamp.js';
export type { _ottoscaler_logs_v1_StreamLogsResponse_Ack as Ack } from '../gen/ottoscaler/logs/v1/StreamLogsResponse.js';
export type { _ottoscaler_logs_v1_StreamLogsRequest_Open__Output as Open } from '../gen/ottoscaler/logs/v1/StreamLogsRequest.js';
export type { _ottoscaler_logs_v1_StreamLogsRequest_Complete__Output as Complete } from '../gen/ottoscaler/logs/v1/StreamLogsRequest.js';

/** Verdicts of an Ack, as the proto numbers them. */
export const verdict = { ack: 1, retry: 2 } as const;

export type Call = ServerDuplexStream<StreamLogsRequest__Output, StreamLogsResponse>;
