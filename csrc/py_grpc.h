/* py_grpc.h: what the files py_grpc*.c share: the server, its methods, a call. */
#ifndef GMP_PY_GRPC_H
#define GMP_PY_GRPC_H

#include "py_gmp.h"

#include "h2.h"

#define GRPC_CODES 17
#define GRPC_BUCKETS 24 /* of latencies: up to 2, 4, 8 ... us, the last one for all that is longer */

/* What is counted of a method's calls. */
typedef struct GrpcCounts {
    uint64_t codes[GRPC_CODES], buckets[GRPC_BUCKETS];
    int64_t ns; /* sum of latencies */
} GrpcCounts;

typedef struct GrpcMethod {
    struct GrpcMethod *next;
    H2Method *known;
    GrpcCounts counts;
    PyObject *handler;                              /* grpc.RpcMethodHandler; NULL: to be looked up for each call */
    PyObject *behavior, *deserializer, *serializer; /* of a unary-unary one; NULL: none */
    bool fast;
} GrpcMethod;

typedef struct GrpcServer {
    PyObject_HEAD
    H2Server *srv;
    uint32_t
        generation; /* of the process: those of a forked child's parent are dead, and what they point to is not to be touched */
    PyTypeObject *context_type;
    PyObject *serve;  /* serve(context, handler or None): what run_unary does not do */
    PyObject *failed; /* failed(context, stage, exception or None) */
    GrpcMethod *methods;
    GrpcCounts others;    /* of calls to no known method */
    PyObject *access_log; /* access_log(path, peer, code, seconds), or NULL */
    PyObject *notice;     /* notice(): warnings() may have one, credentials may wait; NULL */
    int64_t max_send;
    Py_ssize_t active, maximum; /* calls that run; maximum < 0: any number */
    int compression;
    Py_ssize_t ending; /* goroutines on their way to call callbacks */
    WaitQ ended;       /* GIL: dispatch waits there until there are none */
} GrpcServer;

typedef struct GrpcCall {
    PyObject_HEAD
    H2Stream *st;
    GrpcServer *server;
    PyObject *metadata, *code, *details, *trailing, *callbacks;
    int compression;   /* -1: the server's */
    int announced;     /* the encoding that the initial metadata named, once it was sent */
    bool head_allowed; /* the initial metadata was not sent yet */
    bool aborted;      /* by abort() */
    bool finished;     /* the status was sent */
    bool plain_next;   /* disable_next_message_compression */
    bool callbacks_done;
    bool entered; /* counts as active */
    bool counted; /* its end was */
} GrpcCall;

/* What is sent of a call in one go.  data: the message, NULL none.  status < 0: none. */
typedef struct GrpcSending {
    PyObject *data, *head; /* head: the initial metadata, when it was not sent yet */
    int status;
    PyObject *details, *trailing;
} GrpcSending;

/* ---- py_grpc.c ---- */
extern uint32_t grpc_generation;    /* of the process: changes in a forked child */
extern PyObject *grpc_status_codes; /* {grpc.StatusCode: int} */
extern PyObject *grpc_metadatum;    /* metadatum(key, value) */
extern PyObject *grpc_current_var;  /* gmp.context's ContextVar: the call that a goroutine serves, or a part of */
extern PyObject *grpc_decompress;   /* decompress(encoding, data, most) */
extern PyObject *grpc_compress;     /* compress(encoding, data) */

/* ---- py_grpc_send.c ---- */
int grpc_send(GrpcCall *call, const GrpcSending *s); /* 0; -1 with an exception, nothing sent */

/* ---- py_grpc_call.c ---- */
extern PyTypeObject GrpcCall_Type;
PyObject *grpc_call_new(GrpcServer *server, H2Stream *st); /* takes the reference to st over */
int grpc_recv_msg(H2Stream *st, H2Msg **m);
PyObject *grpc_msg_bytes(GrpcServer *server, H2Stream *st, H2Msg *m);
int grpc_code_number(PyObject *code); /* of a grpc.StatusCode, None or NULL */
int grpc_finish(GrpcCall *call, PyObject *data, int status, PyObject *details, PyObject *trailing);
bool grpc_enter(GrpcCall *call); /* false: as many calls run as may */
void grpc_leave(GrpcCall *call);

/* ---- py_grpc_stats.c ---- */
int64_t grpc_count(GrpcServer *server, H2Stream *st, int code);
void grpc_recount(GrpcServer *server, H2Stream *st, int from, int to);
void grpc_tell_log(GrpcServer *server, H2Stream *st, GrpcCall *call, int code, int64_t ns);
int grpc_early_code(H2Stream *st);
void grpc_account_early(GrpcCall *call);
PyObject *grpc_method_counts(GrpcServer *server);
PyObject *grpc_connections(H2Server *srv);

#endif
