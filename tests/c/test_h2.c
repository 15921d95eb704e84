/* test_h2.c: the gRPC engine without Python: an echo server of native goroutines, and clients of libnghttp2 in threads. */
#include "native.h"

#include "h2.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <nghttp2/nghttp2.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

static H2Server *server;
static struct sockaddr_in address;
static long ended_early, echoed; /* atomic */
static uint32_t busy;            /* atomic: the application takes no calls */

/* ---- the application ---- */

static void
send_status(H2Stream *st, uint32_t status)
{
    if (!h2_finish(st))
        return;
    H2Op *op = h2_op_new(st, OP_HEAD | OP_STATUS, 0);
    CHECK(op != NULL);
    op->status = status;
    h2_post(op);
    h2_flush_dirty(server);
}

static void
echo(void *arg)
{
    H2Stream *st = arg;
    for (;;) {
        H2Msg *m;
        int code = h2_recv(st, &m, -1);
        if (code == GMP_ECLOSED) {
            atomic_xadd(&ended_early, 1);
            break;
        }
        CHECK_EQ(code, GMP_OK);
        if (m == NULL) {
            send_status(st, GRPC_OK);
            break;
        }
        H2Op *op = h2_op_new(st, OP_HEAD | OP_MESSAGE, 5 + m->len);
        CHECK(op != NULL);
        op->message = 5 + m->len;
        memset(h2_op_data(op), 0, 5);
        for (int i = 0; i < 4; i++)
            h2_op_data(op)[1 + i] = (char)(m->len >> (24 - 8 * i));
        memcpy(h2_op_data(op) + 5, m->data, m->len);
        free(m);
        h2_post(op);
        if (!h2_recv_ready(st) || !h2_has_room(st))
            h2_flush_dirty(server);
        atomic_xadd(&echoed, 1);
        if (h2_wait_room(st, -1) != GMP_OK)
            continue; /* h2_recv will say so */
    }
    h2_stream_unref(st);
    done();
}

static void
dispatch(void *arg)
{
    (void)arg;
    H2Stream *st;
    int why;
    while (atomic_load(&busy))
        gosleep(MS);
    while (h2_take(server, &st, &why) == GMP_OK) {
        char text[H2_NEWS_SIZE];
        if (why == READY_NOTICE) {
            while (h2_news(server, text))
                LOG("%s\n", text);
            continue;
        }
        CHECK_EQ(why, READY_CALL);
        go(echo, st);
    }
    done();
}

static void
start(const H2Options *change)
{
    H2Options options = {.max_recv = 4 << 20, .stream_window = 65536, .conn_window = 1 << 20, .max_headers = 16384, .max_frame = 16384};
    if (change != NULL)
        options = *change;
    server = h2_server_new(&options);
    CHECK(server != NULL);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    socklen_t len = sizeof address;
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK_EQ(bind(fd, (struct sockaddr *)&address, len), 0);
    CHECK_EQ(listen(fd, 1000), 0);
    CHECK_EQ(getsockname(fd, (struct sockaddr *)&address, &len), 0);
    CHECK_EQ(h2_listen(server, fd, &h2_plain, NULL), 0);
    CHECK_EQ(h2_start(server), 0);
    go(dispatch, NULL);
}

static void
stop(long calls)
{
    h2_kill(server);
    wait_done(calls + 1);
    CHECK_EQ(server->nconns, 0);
    h2_server_free(server);
}

/* Ends all connections.  How many calls the application was given. */
static long
handed_over(void)
{
    h2_kill(server);
    for (;;) {
        mutex_lock(&server->lock);
        uint32_t left = server->nconns;
        mutex_unlock(&server->lock);
        if (left == 0)
            return (long)atomic_load(&server->calls);
        gosleep(MS);
    }
}

/* ---- a client: a thread with a blocking socket ---- */

typedef struct Client Client;
typedef struct Call {
    Client *client;
    int32_t id;
    uint32_t size, sent, got; /* bytes with prefixes: of one message, sent, received */
    uint32_t messages, cancel_at; /* cancel once so many bytes have come; 0 never */
    bool closed;
    uint32_t error;
} Call;
struct Client {
    nghttp2_session *session;
    int fd;
    int open;
    Call *calls;
    int ncalls, next, at_once;
    uint64_t seed;
    char out[1 << 16];
};

static uint8_t
byte_at(const Call *call, uint32_t i)
{
    uint32_t in = i % (call->size + 5);
    if (in >= 5)
        return (uint8_t)(in * 7 + (uint32_t)call->id);
    return in == 0 ? 0 : (uint8_t)(call->size >> (32 - 8 * in));
}

static ssize_t
on_read(nghttp2_session *s, int32_t id, uint8_t *buf, size_t n, uint32_t *flags, nghttp2_data_source *src, void *user)
{
    (void)s, (void)id, (void)user;
    Call *call = src->ptr;
    uint32_t total = call->messages * (call->size + 5);
    size_t i = 0;
    for (; i < n && call->sent < total; i++)
        buf[i] = byte_at(call, call->sent++);
    if (call->sent == total)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)i;
}

static int
on_chunk(nghttp2_session *s, uint8_t flags, int32_t id, const uint8_t *data, size_t n, void *user)
{
    (void)flags, (void)user;
    Call *call = nghttp2_session_get_stream_user_data(s, id);
    for (size_t i = 0; i < n; i++) {
        CHECK_EQ(data[i], byte_at(call, call->got));
        call->got++;
    }
    if (call->cancel_at != 0 && call->got >= call->cancel_at) {
        call->cancel_at = 0;
        nghttp2_submit_rst_stream(s, NGHTTP2_FLAG_NONE, id, NGHTTP2_CANCEL);
    }
    return 0;
}

static int
on_close(nghttp2_session *s, int32_t id, uint32_t error, void *user)
{
    Client *client = user;
    Call *call = nghttp2_session_get_stream_user_data(s, id);
    call->closed = true;
    call->error = error;
    client->open--;
    return 0;
}

static nghttp2_nv
nv(const char *name, const char *value)
{
    return (nghttp2_nv){(uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value), NGHTTP2_NV_FLAG_NONE};
}

static void
begin_call(Client *client, Call *call)
{
    nghttp2_nv nva[] = {nv(":method", "POST"), nv(":scheme", "http"), nv(":path", "/test/Echo"), nv(":authority", "x"),
                        nv("content-type", "application/grpc"), nv("te", "trailers"), nv("grpc-timeout", "1H")};
    nghttp2_data_provider provider = {.source.ptr = call, .read_callback = on_read};
    call->id = nghttp2_submit_request(client->session, NULL, nva, sizeof nva / sizeof *nva, &provider, call);
    CHECK(call->id > 0);
    client->open++;
}

static void
write_all(Client *client)
{
    const uint8_t *data;
    ssize_t n;
    while ((n = nghttp2_session_mem_send(client->session, &data)) > 0)
        for (ssize_t at = 0; at < n;) {
            ssize_t w = send(client->fd, data + at, (size_t)(n - at), MSG_NOSIGNAL | MSG_DONTWAIT);
            if (w > 0) {
                at += w;
                continue;
            }
            /* Both sides may have full sockets: read on. */
            struct pollfd p = {client->fd, POLLIN | POLLOUT, 0};
            CHECK(poll(&p, 1, 20000) == 1);
            if (p.revents & POLLIN) {
                ssize_t r = recv(client->fd, client->out, sizeof client->out, MSG_DONTWAIT);
                CHECK(r > 0);
                CHECK_EQ(nghttp2_session_mem_recv(client->session, (uint8_t *)client->out, (size_t)r), r);
            }
        }
    CHECK_EQ(n, 0);
}

static void
run_client(void *arg)
{
    Client *client = arg;
    nghttp2_session_callbacks *cb;
    CHECK_EQ(nghttp2_session_callbacks_new(&cb), 0);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, on_chunk);
    nghttp2_session_callbacks_set_on_stream_close_callback(cb, on_close);
    CHECK_EQ(nghttp2_session_client_new(&client->session, cb, client), 0);
    nghttp2_session_callbacks_del(cb);
    CHECK_EQ(nghttp2_submit_settings(client->session, NGHTTP2_FLAG_NONE, NULL, 0), 0);
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(connect(client->fd, (struct sockaddr *)&address, sizeof address), 0);
    for (;;) {
        while (client->open < client->at_once && client->next < client->ncalls)
            begin_call(client, &client->calls[client->next++]);
        write_all(client);
        if (client->open == 0 && client->next == client->ncalls)
            break;
        struct pollfd p = {client->fd, POLLIN, 0};
        CHECK(poll(&p, 1, 20000) == 1);
        ssize_t n = recv(client->fd, client->out, sizeof client->out, 0);
        CHECK(n > 0);
        CHECK_EQ(nghttp2_session_mem_recv(client->session, (uint8_t *)client->out, (size_t)n), n);
    }
    nghttp2_session_del(client->session);
    close(client->fd);
}

#define CLIENTS 3

static void
load(int calls, uint32_t size, uint32_t messages, bool cancel)
{
    Client clients[CLIENTS];
    TestThread *threads[CLIENTS];
    uint64_t seed = test_seed();
    memset(clients, 0, sizeof clients);
    for (int i = 0; i < CLIENTS; i++) {
        Client *client = &clients[i];
        Rng r = rng_new(seed, (uint64_t)i);
        client->ncalls = calls;
        client->at_once = 20;
        client->calls = calloc((size_t)calls, sizeof(Call));
        for (int k = 0; k < calls; k++) {
            Call *call = &client->calls[k];
            call->client = client;
            call->size = rng(&r, size);
            call->messages = 1 + rng(&r, messages);
            if (cancel && rng(&r, 3) == 0)
                call->cancel_at = 1 + rng(&r, call->messages * (call->size + 5));
        }
        threads[i] = test_thread(run_client, client);
    }
    for (int i = 0; i < CLIENTS; i++) {
        test_join(threads[i]);
        for (int k = 0; k < calls; k++) {
            Call *call = &clients[i].calls[k];
            CHECK(call->closed);
            if (call->error == NGHTTP2_NO_ERROR)
                CHECK_EQ(call->got, call->messages * (call->size + 5));
            else
                CHECK(cancel);
        }
        free(clients[i].calls);
    }
}

TEST_P(h2_echo)
{
    int calls = test_slow() ? 200 : 2000;
    start(NULL);
    load(calls, 200, 4, false);
    stop(CLIENTS * calls);
    CHECK_EQ(ended_early, 0);
}

TEST_P(h2_large_messages)
{
    int calls = test_slow() ? 6 : 20;
    start(NULL);
    load(calls, 300000, 4, false);
    stop(CLIENTS * calls);
    CHECK_EQ(ended_early, 0);
}

TEST_P(h2_cancelled_calls)
{
    int calls = test_slow() ? 60 : 300;
    start(NULL);
    load(calls, 30000, 6, true);
    stop(handed_over());
}

/* While the application starts no calls, no more than a few thousand of a connection are taken from its socket. */
TEST_P(h2_application_is_behind)
{
    enum { CALLS = 20000, READ = 64 * 1024, SMALLEST = 20 };
    atomic_store(&busy, 1u);
    start(NULL);
    Client *client = calloc(1, sizeof *client);
    client->ncalls = client->at_once = CALLS;
    client->calls = calloc(CALLS, sizeof(Call));
    for (int i = 0; i < CALLS; i++) {
        client->calls[i].client = client;
        client->calls[i].size = 10;
        client->calls[i].messages = 1;
    }
    TestThread *t = test_thread(run_client, client);
    while (atomic_load(&server->nready) < 2048)
        gosleep(MS);
    for (int i = 0; i < 100; i++) {
        CHECK(atomic_load(&server->nready) <= 2048 + READ / SMALLEST);
        gosleep(MS);
    }
    atomic_store(&busy, 0u);
    test_join(t);
    stop(CALLS);
    CHECK_EQ(ended_early, 0);
}

/* The server goes while calls are under way. */
static void
cut_off(void *arg)
{
    Client *client = arg;
    nghttp2_session_callbacks *cb;
    CHECK_EQ(nghttp2_session_callbacks_new(&cb), 0);
    nghttp2_session_callbacks_set_on_stream_close_callback(cb, on_close);
    CHECK_EQ(nghttp2_session_client_new(&client->session, cb, client), 0);
    nghttp2_session_callbacks_del(cb);
    CHECK_EQ(nghttp2_submit_settings(client->session, NGHTTP2_FLAG_NONE, NULL, 0), 0);
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(connect(client->fd, (struct sockaddr *)&address, sizeof address), 0);
    for (int i = 0; i < client->ncalls; i++)
        begin_call(client, &client->calls[i]);
    for (;;) {
        const uint8_t *data;
        ssize_t n;
        while ((n = nghttp2_session_mem_send(client->session, &data)) > 0)
            if (send(client->fd, data, (size_t)n, MSG_NOSIGNAL) < 0)
                break;
        n = recv(client->fd, client->out, sizeof client->out, 0);
        if (n <= 0)
            break;
        if (nghttp2_session_mem_recv(client->session, (uint8_t *)client->out, (size_t)n) < 0)
            break;
    }
    nghttp2_session_del(client->session);
    close(client->fd);
}

TEST_P(h2_killed_while_busy)
{
    enum { CALLS = 50 };
    start(NULL);
    Client *client = calloc(1, sizeof *client);
    client->ncalls = CALLS;
    client->calls = calloc(CALLS, sizeof(Call));
    for (int i = 0; i < CALLS; i++) {
        client->calls[i].size = 100000;
        client->calls[i].messages = 1000000000 / 100005; /* without end */
    }
    TestThread *t = test_thread(cut_off, client);
    while (atomic_load(&echoed) < 20)
        gosleep(MS);
    h2_kill(server);
    test_join(t);
    stop(handed_over());
}
