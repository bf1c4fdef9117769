"""Serve a registered model: an image API and a page that follow an alias, until Ctrl-C."""

import argparse

from jobs import options as shared
from pipeline.errors import invalid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="nasa-shapes", help="registered model (default: %(default)s)")
    parser.add_argument("--alias", default="champion", help="alias of the version to follow (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="file with the token of requests, which an address beyond this machine requires",
    )
    parser.add_argument("--batch-size", type=int, default=16, help="most images of one pass (default: %(default)s)")
    parser.add_argument("--max-queued", type=int, default=128, help="most images that wait (default: %(default)s)")
    parser.add_argument("--max-seconds", type=float, default=60.0, help="longest request (default: %(default)s)")
    parser.add_argument("--min-replicas", type=int, default=1, help="replicas without load (default: %(default)s)")
    parser.add_argument("--max-replicas", type=int, default=1, help="replicas under load (default: %(default)s)")
    parser.add_argument("--cpus", type=float, help="CPU cores of a replica (default: all but one)")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs of a replica (default: %(default)g)")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16 (default: %(default)s)")
    parser.add_argument("--metrics-port", type=int, help="port of the local cluster's metrics (default: random)")
    shared.add_tracking_options(parser)
    shared.add_ray_address_option(parser)


def run(options: argparse.Namespace) -> None:
    from pipeline.serving.server import Address, Cluster, build_options, serve_until_stopped
    from pipeline.serving.serving_options import ServingOptions

    address = Address(options.host, options.port)
    given = {name: value for name, value in vars(options).items() if name in ServingOptions.model_fields}
    if options.ray_address:
        given["tracking_uri"] = shared.require_shared_tracking(options.tracking_uri)
        if options.metrics_port:
            raise invalid("--metrics-port", options.metrics_port, "none with --ray-address, whose nodes have theirs")
    else:
        given["tracking_uri"] = shared.resolve_tracking_uri(options)
    serving = build_options(given, address, options.token_file)
    cluster = Cluster(options.ray_address, options.metrics_port)
    serve_until_stopped(serving, address, cluster, log=lambda line: print(line, flush=True))
