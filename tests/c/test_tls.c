/* test_tls.c: the gRPC engine's TLS without Python: an echo server of native goroutines, and clients of OpenSSL in threads. */
#include "native.h"

#include "h2.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

static H2Server *server;
static H2Tls *tls;
static struct sockaddr_in address;
static long calls_done, warnings; /* atomic */
static uint32_t stopping;         /* atomic */

/* ---- certificates ---- */

typedef struct Pem {
    char key[4096], cert[4096];
    H2Pem k, c;
} Pem;

static void
read_bio(BIO *bio, char *to, size_t size, H2Pem *pem)
{
    int n = BIO_read(bio, to, (int)size);
    CHECK(n > 0 && (size_t)n < size);
    *pem = (H2Pem){to, (size_t)n};
    BIO_free(bio);
}

static void
make_pem(Pem *pem, const char *name)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = X509_new();
    CHECK(key != NULL && cert != NULL);
    X509_set_version(cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
    X509_gmtime_adj(X509_getm_notBefore(cert), -1000);
    X509_gmtime_adj(X509_getm_notAfter(cert), 100000);
    X509_set_pubkey(cert, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0);
    X509_set_issuer_name(cert, X509_get_subject_name(cert));
    CHECK(X509_sign(cert, key, EVP_sha256()) > 0);
    BIO *bio = BIO_new(BIO_s_mem());
    CHECK_EQ(PEM_write_bio_PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL), 1);
    read_bio(bio, pem->key, sizeof pem->key, &pem->k);
    bio = BIO_new(BIO_s_mem());
    CHECK_EQ(PEM_write_bio_X509(bio, cert), 1);
    read_bio(bio, pem->cert, sizeof pem->cert, &pem->c);
    X509_free(cert);
    EVP_PKEY_free(key);
}

/* ---- the application: echoes one message ---- */

static void
echo(void *arg)
{
    H2Stream *st = arg;
    H2Msg *m;
    int code = h2_recv(st, &m, -1);
    if (code == GMP_OK && m != NULL && h2_finish(st)) {
        H2Op *op = h2_op_new(st, OP_HEAD | OP_MESSAGE | OP_STATUS, 5 + m->len);
        CHECK(op != NULL);
        op->message = 5 + m->len;
        h2_op_data(op)[0] = 0;
        for (int i = 0; i < 4; i++)
            h2_op_data(op)[1 + i] = (char)(m->len >> (24 - 8 * i));
        memcpy(h2_op_data(op) + 5, m->data, m->len);
        h2_post(op);
        h2_flush_dirty(server);
    }
    if (code == GMP_OK)
        free(m);
    h2_stream_unref(st);
}

static void
dispatch(void *arg)
{
    (void)arg;
    H2Stream *st;
    int why;
    char line[H2_NEWS_SIZE];
    uint64_t mark;
    while (h2_take(server, &st, &why) == GMP_OK) {
        if (why == READY_CALL) {
            go(echo, st);
            continue;
        }
        CHECK_EQ(why, READY_NOTICE);
        CHECK(st == NULL);
        while (h2_news(server, line)) {
            LOG("%s\n", line);
            atomic_xadd(&warnings, 1);
        }
        while ((mark = h2_tls_waiting(tls)) != 0)
            h2_tls_release(tls, mark);
    }
    done();
}

static void
start(const Pem *pem, bool hold)
{
    H2Options options = {.max_recv = 4 << 20,
                         .stream_window = 65536,
                         .conn_window = 1 << 20,
                         .max_headers = 16384,
                         .max_frame = 16384,
                         .handshake_timeout = 20 * SEC};
    char why[512] = "";
    signal(SIGPIPE, SIG_IGN); /* the clients' */
    if (!h2_tls_load(NULL, why, sizeof why))
        test_fail(__FILE__, __LINE__, "%s", why);
    CHECK((tls = h2_tls_new()) != NULL);
    if (!h2_tls_set(tls, &pem->k, &pem->c, 1, NULL, why, sizeof why))
        test_fail(__FILE__, __LINE__, "%s", why);
    if (hold)
        h2_tls_hold(tls);
    CHECK((server = h2_server_new(&options)) != NULL);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    socklen_t len = sizeof address;
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK_EQ(bind(fd, (struct sockaddr *)&address, len), 0);
    CHECK_EQ(listen(fd, 1000), 0);
    CHECK_EQ(getsockname(fd, (struct sockaddr *)&address, &len), 0);
    h2_tls_ref(tls);
    CHECK_EQ(h2_listen(server, fd, &h2_tls, tls), 0);
    CHECK_EQ(h2_start(server), 0);
    go(dispatch, NULL);
}

static uint32_t
connections(void)
{
    mutex_lock(&server->lock);
    uint32_t n = server->nconns;
    mutex_unlock(&server->lock);
    return n;
}

static void
stop(void)
{
    h2_kill(server);
    wait_done(1);
    CHECK_EQ(connections(), 0);
    h2_server_free(server);
    h2_tls_unref(tls);
}

/* ---- a client: a thread with a blocking socket ---- */

typedef struct Client {
    SSL *ssl;
    nghttp2_session *session;
    int open;
    uint32_t size, sent, got; /* of the message, with its prefix; one call at a time */
} Client;

static uint8_t
byte_at(const Client *client, uint32_t i)
{
    return i >= 5 ? (uint8_t)(i * 7) : i == 0 ? 0 : (uint8_t)((client->size - 5) >> (32 - 8 * i));
}

static ssize_t
on_read(nghttp2_session *s, int32_t id, uint8_t *buf, size_t n, uint32_t *flags, nghttp2_data_source *src, void *user)
{
    (void)s, (void)id, (void)user;
    Client *client = src->ptr;
    size_t i = 0;
    while (i < n && client->sent < client->size)
        buf[i++] = byte_at(client, client->sent++);
    if (client->sent == client->size)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)i;
}

static int
on_chunk(nghttp2_session *s, uint8_t flags, int32_t id, const uint8_t *data, size_t n, void *user)
{
    (void)s, (void)flags, (void)id;
    Client *client = user;
    for (size_t i = 0; i < n; i++)
        CHECK_EQ(data[i], byte_at(client, client->got++));
    return 0;
}

static int
on_close(nghttp2_session *s, int32_t id, uint32_t error, void *user)
{
    (void)s, (void)id;
    Client *client = user;
    CHECK_EQ(error, 0);
    client->open--;
    return 0;
}

static nghttp2_nv
nv(const char *name, const char *value)
{
    return (nghttp2_nv){(uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value), NGHTTP2_NV_FLAG_NONE};
}

static void
call(Client *client, uint32_t size)
{
    nghttp2_nv nva[] = {nv(":method", "POST"), nv(":scheme", "https"), nv(":path", "/test/Echo"), nv(":authority", "x"),
                        nv("content-type", "application/grpc"), nv("te", "trailers")};
    nghttp2_data_provider provider = {.source.ptr = client, .read_callback = on_read};
    uint8_t buf[16384];
    client->size = size + 5;
    client->sent = client->got = 0;
    client->open++;
    CHECK(nghttp2_submit_request(client->session, NULL, nva, sizeof nva / sizeof *nva, &provider, NULL) > 0);
    while (client->open != 0) {
        const uint8_t *data;
        ssize_t n;
        while ((n = nghttp2_session_mem_send(client->session, &data)) > 0)
            CHECK_EQ(SSL_write(client->ssl, data, (int)n), n);
        CHECK_EQ(n, 0);
        if (client->open == 0)
            break;
        int got = SSL_read(client->ssl, buf, sizeof buf);
        CHECK(got > 0);
        CHECK_EQ(nghttp2_session_mem_recv(client->session, buf, (size_t)got), got);
    }
    CHECK_EQ(client->got, client->size);
    atomic_xadd(&calls_done, 1);
}

static int
connected(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    CHECK(fd >= 0);
    CHECK_EQ(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one), 0);
    CHECK_EQ(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static void
converse(SSL_CTX *ctx, Rng *r, int version)
{
    Client client = {0};
    nghttp2_session_callbacks *cb;
    int fd = connected();
    client.ssl = SSL_new(ctx);
    SSL_set_fd(client.ssl, fd);
    CHECK_EQ(SSL_set_max_proto_version(client.ssl, version), 1);
    CHECK_EQ(SSL_set_alpn_protos(client.ssl, (const unsigned char *)"\2h2", 3), 0);
    if (SSL_connect(client.ssl) != 1)
        test_fail(__FILE__, __LINE__, "%s", ERR_reason_error_string(ERR_peek_error()));
    CHECK_EQ(nghttp2_session_callbacks_new(&cb), 0);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, on_chunk);
    nghttp2_session_callbacks_set_on_stream_close_callback(cb, on_close);
    CHECK_EQ(nghttp2_session_client_new(&client.session, cb, &client), 0);
    nghttp2_session_callbacks_del(cb);
    CHECK_EQ(nghttp2_submit_settings(client.session, NGHTTP2_FLAG_NONE, NULL, 0), 0);
    for (uint32_t i = 1 + rng(r, 5); i != 0; i--) {
        call(&client, rng(r, 40000));
        if (version == TLS1_3_VERSION && rng(r, 3) == 0) /* the server's next write answers it */
            CHECK_EQ(SSL_key_update(client.ssl, SSL_KEY_UPDATE_REQUESTED), 1);
    }
    if (rng(r, 2))
        SSL_shutdown(client.ssl);
    nghttp2_session_del(client.session);
    SSL_free(client.ssl);
    close(fd);
}

/* A connection that ends anywhere in its handshake, or was never one. */
static void
disturb(SSL_CTX *ctx, Rng *r)
{
    int fd = connected();
    char noise[300];
    if (rng(r, 2)) {
        for (size_t i = 0; i < sizeof noise; i++)
            noise[i] = (char)rng(r, 256);
        (void)!send(fd, noise, rng(r, sizeof noise), MSG_NOSIGNAL);
    }
    else {
        SSL *ssl = SSL_new(ctx);
        BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_mem());
        SSL_set_bio(ssl, in, out);
        SSL_set_alpn_protos(ssl, (const unsigned char *)"\2h2", 3);
        CHECK_EQ(SSL_connect(ssl), -1);
        char hello[2048];
        int n = BIO_read(out, hello, sizeof hello);
        CHECK(n > 0);
        (void)!send(fd, hello, rng(r, (uint32_t)n + 1), MSG_NOSIGNAL);
        if (rng(r, 2))
            (void)!recv(fd, hello, 1 + rng(r, sizeof hello - 1), MSG_DONTWAIT);
        SSL_free(ssl);
    }
    if (rng(r, 2)) {
        struct linger reset = {1, 0};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    }
    close(fd);
}

typedef struct Job {
    uint64_t seed, stream;
    int rounds;
    bool hostile;
} Job;

static void
run_client(void *arg)
{
    const Job *job = arg;
    Rng r = rng_new(job->seed, job->stream);
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    CHECK(ctx != NULL);
    for (int i = 0; i < job->rounds; i++) {
        if (job->hostile && rng(&r, 2))
            disturb(ctx, &r);
        else
            converse(ctx, &r, rng(&r, 3) ? TLS1_3_VERSION : TLS1_2_VERSION);
    }
    SSL_CTX_free(ctx);
}

static void
change_certificates(void *arg)
{
    Pem *pems = arg;
    char why[512];
    for (int i = 0; !atomic_load(&stopping); i++) {
        const Pem *pem = &pems[i % 2];
        CHECK(h2_tls_set(tls, &pem->k, &pem->c, 1, NULL, why, sizeof why));
        CHECK(!h2_tls_set(tls, &pem->k, &pems[(i + 1) % 2].c, 1, NULL, why, sizeof why));
        h2_tls_before_fork(); /* nothing may stand still for long, or be lost */
        h2_tls_after_fork();
        usleep(1000);
    }
}

#define CLIENTS 3

static void
load(bool hostile, bool hold)
{
    static Pem pems[2];
    Job jobs[CLIENTS];
    TestThread *threads[CLIENTS];
    uint64_t seed = test_seed();
    make_pem(&pems[0], "one");
    make_pem(&pems[1], "two");
    start(&pems[0], hold);
    TestThread *changer = test_thread(change_certificates, pems);
    for (int i = 0; i < CLIENTS; i++) {
        jobs[i] = (Job){seed, (uint64_t)i, test_slow() ? 20 : 100, hostile};
        threads[i] = test_thread(run_client, &jobs[i]);
    }
    for (int i = 0; i < CLIENTS; i++)
        test_join(threads[i]);
    atomic_store(&stopping, 1u);
    test_join(changer);
    CHECK(atomic_load(&calls_done) > CLIENTS * 5);
    if (hostile)
        CHECK(atomic_load(&warnings) > 0);
    else
        CHECK_EQ(atomic_load(&warnings), 0);
    while (connections() != 0)
        gosleep(MS);
    stop();
}

TEST_P(tls_echo)
{
    load(false, false);
}

TEST_P(tls_echo_held)
{
    load(false, true);
}

TEST_P(tls_hostile_clients)
{
    load(true, false);
}

/* What is left of handshakes when the server goes. */
TEST_P(tls_killed_while_shaking)
{
    enum { N = 30 };
    static Pem pem;
    int fds[N];
    make_pem(&pem, "one");
    start(&pem, false);
    for (int i = 0; i < N; i++) {
        fds[i] = connected();
        CHECK_EQ(send(fds[i], "\x16\x03\x01\x02", (size_t)(i % 5 < 4 ? i % 5 : 4), MSG_NOSIGNAL), i % 5 < 4 ? i % 5 : 4);
    }
    while (connections() != N)
        gosleep(MS);
    stop();
    for (int i = 0; i < N; i++)
        close(fds[i]);
}
