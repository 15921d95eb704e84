/* h2_frames.c: the connection's owner and its session: calls from frames, frames from what was posted.
 *
 * Flow control.  The connection's window is given back as data arrives, so that a call whose application does not read holds up
 * no other one.  A call's own window is given back while no complete message waits for its application; beyond that it is held back
 * (H2Stream.held) until the application takes messages.  So a call has at most one window and one message in memory.
 *
 * Whatever is wrong with one call ends that call with a gRPC status (fail_stream); what is wrong with the connection is nghttp2's to
 * find, and ends the connection.
 */
#include "h2_conn.h"

#include <stdio.h>

#define STACK_NVA 32
#ifndef MESSAGE_FIRST             /* tests/fuzz has less */
#define MESSAGE_FIRST (64 * 1024) /* bytes of a message that memory is taken for at once */
#define HAND_OVER_EVERY 32        /* calls of one turn: the application starts on them while the rest is parsed */
#endif

/* Of libnghttp2 1.57, and of older ones with the distributors' patches. */
extern void nghttp2_option_set_stream_reset_rate_limit(nghttp2_option *opt, uint64_t burst, uint64_t rate)
    __attribute__((weak));
extern void nghttp2_option_set_max_continuations(nghttp2_option *opt, size_t n) __attribute__((weak));

/* ---- what goes out (owner) ---- */

static int begin_response(H2Conn *c, H2Stream *st, const H2Op *op, bool only_trailers);

static inline nghttp2_nv
nv_static(const char *name, size_t nlen, const char *value, size_t vlen)
{
    return (nghttp2_nv){(uint8_t *)name, (uint8_t *)value, nlen, vlen,
                        NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE};
}
#define NV(name, value) nv_static(name, sizeof(name) - 1, value, sizeof(value) - 1)

static size_t
put_pairs(nghttp2_nv *nva, const char *at, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        H2Pair p;
        at = h2_pair(at, &p);
        nva[i] = (nghttp2_nv){(uint8_t *)p.name, (uint8_t *)p.value, p.nlen, p.vlen, NGHTTP2_NV_FLAG_NONE};
    }
    return n;
}

static size_t
put_status(nghttp2_nv *nva, const H2Op *op, char *digits)
{
    size_t n = 0;
    if (op->status == GRPC_OK) {
        nva[n++] = NV("grpc-status", "0");
    }
    else {
        int len = snprintf(digits, 12, "%u", op->status);
        nva[n++] =
            (nghttp2_nv){(uint8_t *)"grpc-status", (uint8_t *)digits, 11, (size_t)len, NGHTTP2_NV_FLAG_NO_COPY_NAME};
    }
    const char *at = h2_op_data(op) + op->message + op->head;
    if (op->details != 0)
        nva[n++] =
            (nghttp2_nv){(uint8_t *)"grpc-message", (uint8_t *)at, 12, op->details, NGHTTP2_NV_FLAG_NO_COPY_NAME};
    return n + put_pairs(nva + n, at + op->details, op->ntrail);
}

static nghttp2_nv *
nva_for(nghttp2_nv *stack, size_t n)
{
    return n <= STACK_NVA ? stack : malloc(n * sizeof(nghttp2_nv));
}

static int
submit_trailer(H2Conn *c, H2Stream *st, const H2Op *op)
{
    nghttp2_nv stack[STACK_NVA], *nva = nva_for(stack, 2u + op->ntrail);
    char digits[12];
    if (nva == NULL)
        return NGHTTP2_ERR_NOMEM;
    size_t n = put_status(nva, op, digits);
    int r = nghttp2_submit_trailer(c->session, st->id, nva, n);
    if (nva != stack)
        free(nva);
    st->status_sent = true;
    return r;
}

static void
out_pop(H2Stream *st)
{
    H2Op *op = st->out_first;
    st->conn->earned += 2;
    st->out_first = op->next;
    if (st->out_first == NULL)
        st->out_last = NULL;
    st->out_off = 0;
    h2_op_free(op); /* not the last reference: the session has one */
}

/* What is queued goes, but for the bytes of a frame that nghttp2 has made up its mind about and has not had sent yet. */
static void
out_drop(H2Stream *st, uint32_t keep)
{
    uint32_t dropped = 0;
    H2Op *op = st->out_first, *last = NULL;
    for (uint32_t off = st->out_off; keep != 0; off = 0, op = op->next) {
        uint32_t n = op->message - off;
        op->kind &= OP_MESSAGE;
        if (n > keep) {
            dropped += n - keep;
            op->message = off + keep;
            op->kind = 0; /* a message no more */
            n = keep;
        }
        keep -= n;
        last = op;
    }
    if (last == NULL) {
        while (st->out_first != NULL) {
            dropped += st->out_first->message - st->out_off;
            out_pop(st);
        }
    }
    else {
        op = last->next;
        last->next = NULL;
        st->out_last = last;
        while (op != NULL) {
            H2Op *next = op->next;
            dropped += op->message;
            h2_op_free(op);
            op = next;
        }
    }
    if (dropped != 0)
        h2_out_gone(st, dropped);
}

/* How much may go into the next DATA frame.  The bytes themselves are taken by on_send_data. */
static ssize_t
on_read_data(nghttp2_session *session, int32_t id, uint8_t *buf, size_t length, uint32_t *flags,
             nghttp2_data_source *source, void *user)
{
    (void)session, (void)id, (void)buf;
    H2Conn *c = user;
    H2Stream *st = source->ptr;
    size_t n = 0, off = st->out_off;
    H2Op *op = st->out_first;
    for (; op != NULL; op = op->next) {
        n += op->message - off;
        off = 0;
        if (n > length) {
            *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
            st->framed = (uint32_t)length;
            return (ssize_t)length;
        }
        if (op->kind & (OP_STATUS | OP_ABORT))
            break;
    }
    if (op != NULL) {
        *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
        if (submit_trailer(c, st, op) != 0)
            return NGHTTP2_ERR_CALLBACK_FAILURE;
    }
    else if (n == 0) {
        st->deferred = true;
        return NGHTTP2_ERR_DEFERRED;
    }
    if (n != 0)
        *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    st->framed = (uint32_t)n;
    return (ssize_t)n;
}

static int
on_send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *head, size_t length,
             nghttp2_data_source *source, void *user)
{
    (void)session, (void)frame;
    H2Conn *c = user;
    H2Stream *st = source->ptr;
    H2Buf *b = c->out;
    if (b->len + 9 + length + OUT_RESERVE > H2_OUT)
        return NGHTTP2_ERR_WOULDBLOCK;
    char *to = b->out + b->len;
    st->framed = 0;
    memcpy(to, head, 9);
    to += 9;
    for (size_t left = length; left != 0;) {
        H2Op *op = st->out_first;
        size_t n = op->message - st->out_off;
        if (n > left)
            n = left;
        memcpy(to, h2_op_data(op) + st->out_off, n);
        to += n;
        left -= n;
        st->out_off += (uint32_t)n;
        if (st->out_off == op->message) {
            if (op->kind & OP_MESSAGE)
                h2_count(&c->counts.messages_sent, 1);
            if (!(op->kind & (OP_STATUS | OP_ABORT)))
                out_pop(st);
        }
    }
    b->len += 9 + length;
    c->data_sent = true;
    c->earned += 2;
    h2_out_gone(st, (uint32_t)length);
    return 0;
}

/* The response's HEADERS; with only_trailers they are all there is of it. */
static int
begin_response(H2Conn *c, H2Stream *st, const H2Op *op, bool only_trailers)
{
    static const char *const names[] = {"identity", "deflate", "gzip"};
    nghttp2_nv stack[STACK_NVA], *nva = nva_for(stack, 6u + op->nhead + op->ntrail);
    char digits[12];
    if (nva == NULL)
        return NGHTTP2_ERR_NOMEM;
    size_t n = 0;
    nva[n++] = NV(":status", "200");
    nva[n++] = NV("content-type", "application/grpc");
    if (op->encoding == ENC_DEFLATE || op->encoding == ENC_GZIP)
        nva[n++] = nv_static("grpc-encoding", 13, names[op->encoding], strlen(names[op->encoding]));
    int r;
    if (!only_trailers || st->encoding == ENC_OTHER) /* that client is to know what it may use */
        nva[n++] = NV("grpc-accept-encoding", "identity, deflate, gzip");
    if (only_trailers) {
        n += put_status(nva + n, op, digits);
        r = nghttp2_submit_response(c->session, st->id, nva, n, NULL);
        st->status_sent = true;
    }
    else {
        n += put_pairs(nva + n, h2_op_data(op) + op->message, op->nhead);
        nghttp2_data_provider provider = {.source.ptr = st, .read_callback = on_read_data};
        r = nghttp2_submit_response(c->session, st->id, nva, n, &provider);
    }
    st->head_sent = true;
    if (nva != stack)
        free(nva);
    return r;
}

/* op was posted, or is the engine's own; it is freed. */
static void
apply(H2Conn *c, H2Op *op)
{
    H2Stream *st = op->st;
    if (c->dead || st->closed || st->status_sent) {
        if (op->message != 0)
            h2_out_gone(st, op->message);
        h2_op_free(op);
        return;
    }
    if (op->kind & OP_ABORT)
        out_drop(st, st->framed);
    if (!st->head_sent) {
        bool only = (op->kind & (OP_STATUS | OP_ABORT)) && op->message == 0 && op->nhead == 0;
        if (begin_response(c, st, op, only) != 0) {
            nghttp2_submit_rst_stream(c->session, NGHTTP2_FLAG_NONE, st->id, NGHTTP2_INTERNAL_ERROR);
            only = true;
        }
        if (only) {
            if (op->message != 0)
                h2_out_gone(st, op->message);
            h2_op_free(op);
            return;
        }
    }
    if (op->kind & (OP_MESSAGE | OP_STATUS | OP_ABORT)) {
        op->next = NULL;
        if (st->out_last != NULL)
            st->out_last->next = op;
        else
            st->out_first = op;
        st->out_last = op;
        if (st->deferred) {
            st->deferred = false;
            nghttp2_session_resume_data(c->session, st->id);
        }
        return;
    }
    h2_op_free(op);
}

/* The engine ends a call: with a status, for a reason the application is told. */
static void
fail_stream(H2Conn *c, H2Stream *st, H2End why, uint32_t status, const char *text)
{
    st->offered = true; /* too late for a call that the application does not know yet */
    if (why == END_TOO_LARGE)
        atomic_store_relaxed(&st->cancel, status); /* for whom h2_end_stream tells */
    h2_end_stream(st, why);
    if (st->closed || st->status_sent)
        return;
    H2Op *op = h2_op_new(st, OP_ABORT, strlen(text));
    if (op == NULL) {
        nghttp2_submit_rst_stream(c->session, NGHTTP2_FLAG_NONE, st->id, NGHTTP2_INTERNAL_ERROR);
        return;
    }
    op->status = status;
    op->details = (uint32_t)strlen(text);
    memcpy(h2_op_data(op), text, op->details);
    apply(c, op);
}

static void
answer(H2Conn *c, H2Stream *st)
{
    uint32_t asked = atomic_xchg(&st->asked, 0u); /* from here on st->ask may be pushed again */
    if (c->dead || st->closed)
        return;
    if (asked & ASK_CONSUME) {
        mutex_lock(&st->lock);
        uint32_t n = st->take;
        st->take = 0;
        if (st->first == NULL || n > st->held)
            n = st->held;
        st->held -= n;
        mutex_unlock(&st->lock);
        if (n != 0 && !st->remote_closed)
            nghttp2_session_consume_stream(c->session, st->id, n);
    }
    if ((asked & ASK_CANCEL) && !st->cancelling) {
        st->cancelling = true;
        h2_stream_ref(st);
        st->cancel_next = c->to_cancel;
        c->to_cancel = st;
    }
    if (asked & ASK_DEADLINE)
        fail_stream(c, st, END_DEADLINE, GRPC_DEADLINE_EXCEEDED, "Deadline Exceeded");
}

void
h2_drain_outbox(H2Conn *c)
{
    H2Op *stack = atomic_xchg(&c->outbox, (H2Op *)NULL), *list = NULL;
    while (stack != NULL) {
        H2Op *op = stack;
        stack = op->next;
        op->next = list;
        list = op;
    }
    while (list != NULL) {
        H2Op *op = list;
        H2Stream *st = op->st;
        list = op->next;
        if (op->kind != 0) {
            apply(c, op);
        }
        else {
            answer(c, st);
            h2_stream_unref(st);
        }
    }
}

bool
h2_cancel_asked(H2Conn *c)
{
    H2Stream *st = c->to_cancel;
    c->to_cancel = NULL;
    if (st == NULL)
        return false;
    while (st != NULL) {
        H2Stream *next = st->cancel_next;
        st->cancelling = false;
        uint32_t status = atomic_load_relaxed(&st->cancel);
        fail_stream(c, st, END_CANCEL, status, status == GRPC_CANCELLED ? "CANCELLED" : "");
        h2_stream_unref(st);
        st = next;
    }
    return true;
}

/* ---- what comes in (owner) ---- */

static H2Stream *
stream_of(nghttp2_session *session, int32_t id)
{
    return nghttp2_session_get_stream_user_data(session, id);
}

static int
on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    H2Conn *c = user;
    c->in_block = true;
    c->block_seq++;
    c->block_since = c->last_read;
    c->block_bytes = 0;
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    H2Stream *st = malloc(sizeof *st);
    if (st == NULL)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    memset(st, 0, offsetof(H2Stream, inlined));
    st->refs = 1;
    st->started = c->last_read;
    st->id = frame->hd.stream_id;
    st->conn = c;
    atomic_xadd(&c->refs, 1u);
    st->head = st->inlined;
    st->head_cap = sizeof st->inlined;
    st->ask.st = st;
    st->next = c->streams;
    if (c->streams != NULL)
        c->streams->prev = st;
    c->streams = st;
    atomic_store_relaxed(&c->nstreams, c->nstreams + 1);
    h2_count(&c->counts.streams_started, 1);
    atomic_store_relaxed(&c->counts.last_stream, c->last_read);
    nghttp2_session_set_stream_user_data(session, st->id, st);
    return 0;
}

/* Room for n more bytes in the head, or NULL: no memory, or beyond the limit. */
static char *
head_room(H2Conn *c, H2Stream *st, size_t n)
{
    size_t need = st->head_len + n;
    if (need > c->server->options.max_headers)
        return NULL;
    if (need > st->head_cap) {
        size_t cap = need * 2;
        char *heap = h2_charge(c, cap) ? malloc(cap) : NULL;
        if (heap == NULL)
            return NULL;
        memcpy(heap, st->head, st->head_len);
        if (st->head != st->inlined) {
            atomic_xadd_relaxed(&c->taken, (uint64_t)st->head_cap);
            free(st->head);
        }
        st->head = heap;
        st->head_cap = (uint32_t)cap;
    }
    return st->head + st->head_len;
}

/* An entry of the metadata.  The values of a -bin key may have been joined by commas on their way: they are taken apart. */
static void
put_header(H2Conn *c, H2Stream *st, const uint8_t *name, size_t nlen, const uint8_t *value, size_t vlen)
{
    bool binary = nlen > 4 && memcmp(name + nlen - 4, "-bin", 4) == 0;
    while (vlen != 0 && (*value == ' ' || *value == '\t'))
        value++, vlen--;
    while (vlen != 0 && (value[vlen - 1] == ' ' || value[vlen - 1] == '\t'))
        vlen--;
    for (;;) {
        const uint8_t *comma = binary && vlen != 0 ? memchr(value, ',', vlen) : NULL;
        size_t n = comma != NULL ? (size_t)(comma - value) : vlen;
        char *to = head_room(c, st, H2_PAIR_HEAD + nlen + n);
        if (to == NULL) {
            st->bad = BAD_SIZE;
            return;
        }
        if (binary && !h2_is_base64(value, n)) {
            st->bad = BAD_BINARY;
            return;
        }
        h2_put_pair(to, (const char *)name, (uint32_t)nlen, (const char *)value, (uint32_t)n);
        st->head_len += (uint32_t)(H2_PAIR_HEAD + nlen + n);
        st->npairs++;
        if (comma == NULL)
            return;
        value = comma + 1;
        vlen -= n + 1;
    }
}

#define IS(literal) (nlen == sizeof(literal) - 1 && memcmp(name, literal, sizeof(literal) - 1) == 0)

static int
on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t nlen, const uint8_t *value,
          size_t vlen, uint8_t flags, void *user)
{
    H2Conn *c = user;
    (void)flags;
    if (GMP_UNLIKELY(h2_spend_header(c, nlen + vlen + 32) != 0))
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    H2Stream *st = stream_of(session, frame->hd.stream_id);
    if (st == NULL || st->bad)
        return 0;
    if (name[0] == ':') {
        if (IS(":path")) {
            char *to = head_room(c, st, vlen);
            if (to == NULL || st->head_len != 0) {
                st->bad = BAD_SIZE;
                return 0;
            }
            memcpy(to, value, vlen);
            st->head_len = st->path_len = (uint32_t)vlen;
        }
        else if (IS(":method")) {
            st->post = vlen == 4 && memcmp(value, "POST", 4) == 0;
        }
        return 0;
    }
    if (nlen > 5 && memcmp(name, "grpc-", 5) == 0) {
        if (IS("grpc-timeout")) {
            int64_t ns = h2_parse_timeout(value, vlen);
            if (ns == 0)
                st->bad = BAD_TIMEOUT;
            else
                st->deadline = nanotime() + ns;
            return 0;
        }
        if (IS("grpc-encoding")) {
            st->encoding = (uint8_t)h2_encoding_of(value, vlen);
            return 0;
        }
        if (IS("grpc-accept-encoding")) {
            st->accepts |= h2_encodings_in(value, vlen);
            return 0;
        }
        if (IS("grpc-status") || IS("grpc-message")) /* they are a response's */
            return 0;
    }
    else if (IS("content-type")) {
        st->grpc = vlen >= 16 && memcmp(value, "application/grpc", 16) == 0 &&
                   (vlen == 16 || value[16] == '+' || value[16] == ';');
        return 0;
    }
    else if (IS("te")) {
        return 0;
    }
    put_header(c, st, name, nlen, value, vlen);
    return 0;
}

void
h2_hand_over(H2Conn *c)
{
    if (c->fresh_first == NULL)
        return;
    H2Stream *first = c->fresh_first, *last = c->fresh_last;
    uint32_t n = c->nfresh;
    c->fresh_first = c->fresh_last = NULL;
    c->nfresh = 0;
    atomic_xadd_relaxed(&c->server->calls, (uint64_t)n);
    h2_ready(c->server, first, last, n, READY_CALL);
}

/* st is for the application; the list's reference becomes the application's. */
static void
offer(H2Conn *c, H2Stream *st)
{
    if (st->offered)
        return;
    st->offered = true;
    h2_stream_ref(st);
    st->ready_next = NULL;
    if (c->fresh_last != NULL)
        c->fresh_last->ready_next = st;
    else
        c->fresh_first = st;
    c->fresh_last = st;
    if (++c->nfresh >= HAND_OVER_EVERY)
        h2_hand_over(c);
}

static void
plain_http_error(H2Conn *c, H2Stream *st, const char *status)
{
    nghttp2_nv nv = nv_static(":status", 7, status, 3);
    st->offered = st->head_sent = st->status_sent = true;
    nghttp2_submit_response(c->session, st->id, &nv, 1, NULL);
}

static void
request_begun(H2Conn *c, H2Stream *st)
{
    st->started = nanotime();
    switch (st->bad) {
    case BAD_NOT:
        break;
    case BAD_SIZE:
        fail_stream(c, st, END_TOO_LARGE, GRPC_RESOURCE_EXHAUSTED, "received metadata size exceeds the limit");
        return;
    case BAD_TIMEOUT:
        fail_stream(c, st, END_TOO_LARGE, GRPC_INTERNAL, "grpc-timeout is no number and unit");
        return;
    case BAD_BINARY:
        fail_stream(c, st, END_TOO_LARGE, GRPC_INTERNAL, "the value of a -bin key is not base64");
        return;
    }
    if (!st->post) {
        plain_http_error(c, st, "405");
        return;
    }
    if (!st->grpc) {
        plain_http_error(c, st, "415");
        return;
    }
    if (st->encoding == ENC_OTHER) {
        fail_stream(c, st, END_TOO_LARGE, GRPC_UNIMPLEMENTED, "the compression of the request is not supported");
        return;
    }
    if (!h2_admit(c)) {
        st->offered = st->head_sent = st->status_sent = true;
        nghttp2_submit_rst_stream(c->session, NGHTTP2_FLAG_NONE, st->id, NGHTTP2_REFUSED_STREAM);
        return;
    }
    st->method = h2_find(c->server, st->head, st->path_len);
    if (st->deadline != 0) {
        h2_stream_ref(st);
        st->timing = true;
        if (timer_arm(H2_SET, &st->timer, st->deadline, h2_deadline_due, st, 0) != GMP_OK) {
            st->timing = false;
            h2_stream_unref(st);
        }
    }
    if (st->method == NULL || !st->method->unary)
        offer(c, st);
}

static void
message_complete(H2Conn *c, H2Stream *st)
{
    H2Msg *m = st->partial;
    st->partial = NULL;
    st->nprefix = 0;
    m->next = NULL;
    h2_large_message(m->len);
    mutex_lock(&st->lock);
    if (st->last != NULL)
        st->last->next = m;
    else
        st->first = m;
    st->last = m;
    st->queued += m->len + 5;
    Sudog *reader = waitq_pop(&st->readers);
    mutex_unlock(&st->lock);
    if (reader != NULL)
        goready(reader->g); /* not under the lock: it takes it first of all, maybe at once */
    c->earned += 2;
    h2_count(&c->counts.messages_received, 1);
    offer(c, st);
}

/* Makes room for cap bytes of the message.  What a client announces takes no memory before it comes. */
static bool
grow_message(H2Conn *c, H2Stream *st, uint32_t cap)
{
    const char *why = "the connection's requests that nobody has read yet take too much memory";
    H2Msg *m = NULL;
    if (h2_charge(c, cap - st->cap)) {
        why = "no memory for a message";
        m = realloc(st->partial, sizeof *m + cap);
        if (m == NULL)
            atomic_xadd_relaxed(&c->taken, (uint64_t)(cap - st->cap));
    }
    if (m == NULL) {
        fail_stream(c, st, END_TOO_LARGE, GRPC_RESOURCE_EXHAUSTED, why);
        return false;
    }
    st->partial = m;
    st->cap = cap;
    return true;
}

/* The five bytes before a message are there. */
static bool
message_begun(H2Conn *c, H2Stream *st)
{
    const uint8_t *p = st->prefix;
    uint32_t len = (uint32_t)p[1] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 8 | p[4];
    int64_t most = c->server->options.max_recv;
    if (p[0] > 1) {
        fail_stream(c, st, END_TOO_LARGE, GRPC_INTERNAL, "a message has a bad flag");
        return false;
    }
    if (p[0] == 1 && st->encoding == ENC_IDENTITY) {
        fail_stream(c, st, END_TOO_LARGE, GRPC_INTERNAL, "a message is compressed, but no grpc-encoding was named");
        return false;
    }
    if (most >= 0 && len > most) {
        char text[96];
        snprintf(text, sizeof text, "SERVER: Received message larger than max (%u vs. %lld)", len, (long long)most);
        fail_stream(c, st, END_TOO_LARGE, GRPC_RESOURCE_EXHAUSTED, text);
        return false;
    }
    st->got = st->cap = 0;
    if (!grow_message(c, st, len < MESSAGE_FIRST ? len : MESSAGE_FIRST))
        return false;
    st->partial->len = len;
    st->partial->compressed = p[0] == 1;
    return true;
}

static int
on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data, size_t len, void *user)
{
    H2Conn *c = user;
    (void)flags;
    H2Stream *st = stream_of(session, id);
    c->had_data = true;
    nghttp2_session_consume_connection(session, len);
    if (st == NULL)
        return 0;
    mutex_lock(&st->lock);
    bool hold = st->first != NULL && st->ended == END_NOT;
    if (hold)
        st->held += (uint32_t)len;
    bool ended = st->ended != END_NOT;
    mutex_unlock(&st->lock);
    if (!hold)
        nghttp2_session_consume_stream(session, id, len);
    if (ended)
        return 0; /* nobody will read it */
    while (len != 0) {
        if (st->partial == NULL) {
            while (st->nprefix < 5 && len != 0) {
                st->prefix[st->nprefix++] = *data++;
                len--;
            }
            if (st->nprefix < 5)
                return 0;
            if (!message_begun(c, st))
                return 0;
        }
        H2Msg *m = st->partial;
        size_t n = m->len - st->got;
        if (n > len)
            n = len;
        if (n > st->cap - st->got) {
            uint64_t cap = 2 * (uint64_t)st->cap;
            if (!grow_message(c, st, cap < m->len ? (uint32_t)cap : m->len))
                return 0;
            continue;
        }
        memcpy(m->data + st->got, data, n);
        st->got += (uint32_t)n;
        data += n;
        len -= n;
        if (st->got == m->len)
            message_complete(c, st);
    }
    return 0;
}

static void
half_close(H2Conn *c, H2Stream *st)
{
    st->remote_closed = true;
    if (st->nprefix != 0 && h2_ended(st) == END_NOT) {
        fail_stream(c, st, END_TOO_LARGE, GRPC_INTERNAL, "the request ends within a message");
        return;
    }
    mutex_lock(&st->lock);
    st->half_closed = true;
    while (waitq_wake(&st->readers))
        ;
    mutex_unlock(&st->lock);
    if (!st->status_sent)
        offer(c, st);
}

void
h2_goaway(H2Conn *c)
{
    if (c->last_goaway)
        return;
    c->last_goaway = true;
    nghttp2_submit_goaway(c->session, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(c->session),
                          NGHTTP2_NO_ERROR, NULL, 0);
}

const uint8_t h2_drain_ping[8] = "gmpdrain";

static void
on_ping(H2Conn *c, const nghttp2_frame *frame)
{
    const H2Options *o = &c->server->options;
    if (frame->hd.flags & NGHTTP2_FLAG_ACK) {
        if (memcmp(frame->ping.opaque_data, h2_drain_ping, 8) == 0)
            h2_goaway(c);
        else
            c->ping_sent = 0;
        return;
    }
    int64_t now = nanotime(), least = o->min_ping_interval;
    if (c->nstreams == 0 && !o->keepalive_without_calls)
        least = (int64_t)7200 * 1000000000;
    if (c->data_sent) {
        c->data_sent = false;
        c->strikes = 0;
    }
    else if (c->last_ping != 0 && now - c->last_ping < least && ++c->strikes > o->max_ping_strikes &&
             o->max_ping_strikes > 0) {
        static const char text[] = "too_many_pings";
        nghttp2_submit_goaway(c->session, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(c->session),
                              NGHTTP2_ENHANCE_YOUR_CALM, (const uint8_t *)text, sizeof text - 1);
        c->parting = true;
        h2_blame(c, WHY_PINGS, "%d pings less than %.1f s apart, and no data", c->strikes, (double)least / 1e9);
    }
    c->last_ping = now;
}

static int
on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    H2Conn *c = user;
    H2Stream *st;
    switch (frame->hd.type) {
    case NGHTTP2_HEADERS:
        c->in_block = false;
        st = stream_of(session, frame->hd.stream_id);
        if (st == NULL)
            break;
        if (frame->headers.cat == NGHTTP2_HCAT_REQUEST)
            request_begun(c, st);
        if (frame->hd.flags & NGHTTP2_FLAG_END_STREAM)
            half_close(c, st);
        break;
    case NGHTTP2_DATA:
        if ((frame->hd.flags & NGHTTP2_FLAG_END_STREAM) && (st = stream_of(session, frame->hd.stream_id)) != NULL)
            half_close(c, st);
        else if (!c->had_data)
            return h2_spend_frame(c, NGHTTP2_DATA);
        break;
    case NGHTTP2_SETTINGS:
        if (!c->greeted)
            atomic_or(&c->chores, (uint32_t)CHORE_TIMER); /* from now on there is keepalive */
        c->greeted = true;
        break;
    case NGHTTP2_PING:
        on_ping(c, frame);
        break;
    default:
        break;
    }
    return 0;
}

static int
on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *hd, void *user)
{
    H2Conn *c = user;
    switch (hd->type) {
    case NGHTTP2_HEADERS: /* nghttp2 ignores those on streams that are gone */
        if (stream_of(session, hd->stream_id) == NULL &&
            hd->stream_id <= nghttp2_session_get_last_proc_stream_id(session))
            return h2_spend_frame(c, hd->type);
        return 0;
    case NGHTTP2_CONTINUATION:
        return h2_spend_header(c, hd->length + 9);
    case NGHTTP2_DATA:
        c->in_block = c->had_data = false;
        return stream_of(session, hd->stream_id) != NULL ? 0 : h2_spend_frame(c, hd->type);
    default:
        c->in_block = false;
        return h2_spend_frame(c, hd->type);
    }
}

static int
on_invalid_frame(nghttp2_session *session, const nghttp2_frame *frame, int error, void *user)
{
    H2Conn *c = user;
    (void)session, (void)error;
    c->in_block = false;
    return h2_spend_frame(c, frame->hd.type);
}

static int
on_frame_sent(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    H2Conn *c = user;
    if (frame->hd.type == NGHTTP2_GOAWAY &&
        frame->goaway.error_code != NGHTTP2_NO_ERROR) /* nghttp2's, or told already */
        h2_blame(c, WHY_PROTOCOL, "%s: %.*s", nghttp2_http2_strerror(frame->goaway.error_code),
                 (int)frame->goaway.opaque_data_len, (const char *)frame->goaway.opaque_data);
    if (frame->hd.type != NGHTTP2_HEADERS)
        return 0;
    c->data_sent = true;
    if (!(frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
        return 0;
    H2Stream *st = stream_of(session, frame->hd.stream_id);
    if (st == NULL)
        return 0;
    st->end_sent = true;
    if (!st->remote_closed) /* the client need not send the rest */
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, st->id, NGHTTP2_NO_ERROR);
    return 0;
}

/* nghttp2 keeps a frame that it will not send to itself: the client would wait for it. */
static int
on_frame_not_sent(nghttp2_session *session, const nghttp2_frame *frame, int error, void *user)
{
    (void)error, (void)user;
    if (frame->hd.type == NGHTTP2_HEADERS && stream_of(session, frame->hd.stream_id) != NULL)
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_INTERNAL_ERROR);
    return 0;
}

/* The session has let go of st. */
void
h2_stream_gone(H2Conn *c, H2Stream *st, H2End why)
{
    st->closed = true;
    if (st->prev != NULL)
        st->prev->next = st->next;
    else
        c->streams = st->next;
    if (st->next != NULL)
        st->next->prev = st->prev;
    atomic_store_relaxed(&c->nstreams, c->nstreams - 1);
    h2_count(st->end_sent ? &c->counts.streams_succeeded : &c->counts.streams_failed, 1);
    if (st->timing && timer_del(&st->timer))
        h2_stream_unref(st); /* else the timer fires at this moment, and drops it */
    st->timing = false;
    out_drop(st, 0);
    h2_end_stream(st, why);
    h2_stream_unref(st);
}

static int
on_stream_close(nghttp2_session *session, int32_t id, uint32_t error, void *user)
{
    H2Conn *c = user;
    H2Stream *st = stream_of(session, id);
    if (error != NGHTTP2_NO_ERROR)
        atomic_xadd_relaxed(&c->server->resets, (uint64_t)1);
    if (st != NULL) {
        c->in_block = false;
        if (error != NGHTTP2_NO_ERROR)
            h2_spend_reset(c, st);
        else if (st->status_sent)
            c->answered++;
        nghttp2_session_set_stream_user_data(session, id, NULL);
        h2_stream_gone(c, st, END_RESET);
        if (c->nstreams == 0)
            c->idle_since = nanotime();
    }
    return 0;
}

nghttp2_session *
h2_session_new(H2Conn *c)
{
    const H2Options *o = &c->server->options;
    nghttp2_session_callbacks *cb = NULL;
    nghttp2_option *opt = NULL;
    nghttp2_session *session = NULL;
    if (nghttp2_session_callbacks_new(&cb) != 0 || nghttp2_option_new(&opt) != 0)
        goto done;
    nghttp2_session_callbacks_set_on_begin_headers_callback(cb, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(cb, on_header);
    nghttp2_session_callbacks_set_on_begin_frame_callback(cb, on_begin_frame);
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(cb, on_invalid_frame);
    nghttp2_session_callbacks_set_on_frame_recv_callback(cb, on_frame);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(cb, on_stream_close);
    nghttp2_session_callbacks_set_on_frame_send_callback(cb, on_frame_sent);
    nghttp2_session_callbacks_set_on_frame_not_send_callback(cb, on_frame_not_sent);
    nghttp2_session_callbacks_set_send_data_callback(cb, on_send_data);
    nghttp2_option_set_max_send_header_block_length(opt, H2_MAX_HEAD_SENT); /* not 64 KiB: details may be a traceback */
    nghttp2_option_set_no_auto_window_update(opt, 1);
    nghttp2_option_set_no_closed_streams(opt, 1);
    nghttp2_option_set_no_rfc9113_leading_and_trailing_ws_validation(
        opt, 1);                                            /* gRPC's clients send it; put_header strips it */
    if (nghttp2_option_set_stream_reset_rate_limit != NULL) /* ours knows which resets are harmless: h2_guard.c */
        nghttp2_option_set_stream_reset_rate_limit(opt, UINT32_MAX, UINT32_MAX);
    if (nghttp2_option_set_max_continuations != NULL) /* eight are fewer than the limit that is ours */
        nghttp2_option_set_max_continuations(opt, (size_t)(h2_block_most(c) / o->max_frame) + 8);
    if (nghttp2_session_server_new2(&session, cb, c, opt) != 0) {
        session = NULL;
        goto done;
    }
    nghttp2_settings_entry settings[5];
    size_t n = 0;
    settings[n++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, o->stream_window};
    settings[n++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_MAX_FRAME_SIZE, o->max_frame};
    settings[n++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, o->max_headers};
    if (o->max_streams != 0)
        settings[n++] = (nghttp2_settings_entry){NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, o->max_streams};
    if (nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, settings, n) != 0 ||
        nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, 0, (int32_t)o->conn_window) != 0) {
        nghttp2_session_del(session);
        session = NULL;
    }
done:
    nghttp2_option_del(opt);
    nghttp2_session_callbacks_del(cb);
    return session;
}
