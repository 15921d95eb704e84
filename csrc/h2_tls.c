/* h2_tls.c: connections through OpenSSL: credentials, handshakes, records, what is known of a client.
 *
 * OpenSSL is loaded when the first credentials are made (h2_tls_load), by name, and called through the table `o`: gmp is not linked
 * against it, so that who does not serve TLS pays nothing for it, neither at import nor in memory.
 *
 * Records.  OpenSSL gets at no descriptor.  Its BIO is a pair of windows: bytes that were received before it is called, and a buffer
 * for what it wants sent, which is sent after it returns.  So it never has to wait for the socket: a read that wants to write (a
 * handshake, a key update) and a write that wants to read are no cases of their own; there is one recv and one send per turn, not one
 * or two per record; nothing raises SIGPIPE.  What the socket does not take is kept (TlsConn.rest) and H2Conn.held says so.  Both
 * windows are buffers of the thread (H2Buf), so a connection that waits holds no more than OpenSSL itself does.
 * Rejected: a socket BIO (SIGPIPE, two system calls a record); memory BIOs (they keep their memory, one more copy).
 *
 * The handshake is done in reads, by the connection's goroutine; until it is over H2Conn.shaking keeps the session silent.  What is wrong
 * with it is told by one line (h2_tell), the client gets an alert, the connection ends.
 *
 * Credentials (H2Tls) name a Config: an SSL_CTX for each key.  It is never changed, only replaced; a connection takes the one there is
 * when its first bytes have come.
 *
 * OpenSSL runs on g0's stack: a handshake takes some 10 KiB of it, which each connection would keep otherwise.
 *
 * The gate.  All calls of OpenSSL that are made without the GIL lie between enter() and leave().  It is shut while the process forks,
 * so that the child finds OpenSSL's locks free, and for good when the process exits, before OpenSSL takes itself down.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "h2.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <unistd.h>

#ifndef GMP_LIBSSL
#define GMP_LIBSSL "libssl.so.3"
#define GMP_LIBCRYPTO "libcrypto.so.3"
#endif

/* ---- the library ---- */

#define CRYPTO_FUNCTIONS(F)                                                                                            \
    F(ASN1_STRING_get0_data)                                                                                           \
    F(ASN1_STRING_length)                                                                                              \
    F(ASN1_STRING_to_UTF8)                                                                                             \
    F(BIO_clear_flags)                                                                                                 \
    F(BIO_ctrl)                                                                                                        \
    F(BIO_free)                                                                                                        \
    F(BIO_get_data)                                                                                                    \
    F(BIO_get_new_index)                                                                                               \
    F(BIO_meth_new)                                                                                                    \
    F(BIO_meth_set_ctrl)                                                                                               \
    F(BIO_meth_set_read_ex)                                                                                            \
    F(BIO_meth_set_write_ex)                                                                                           \
    F(BIO_new)                                                                                                         \
    F(BIO_new_mem_buf)                                                                                                 \
    F(BIO_s_mem)                                                                                                       \
    F(BIO_set_data)                                                                                                    \
    F(BIO_set_flags)                                                                                                   \
    F(BIO_set_init)                                                                                                    \
    F(CRYPTO_free)                                                                                                     \
    F(ERR_clear_error)                                                                                                 \
    F(ERR_peek_error)                                                                                                  \
    F(ERR_peek_last_error)                                                                                             \
    F(ERR_reason_error_string)                                                                                         \
    F(EVP_PKEY_free)                                                                                                   \
    F(GENERAL_NAMES_free)                                                                                              \
    F(OPENSSL_sk_new_null)                                                                                             \
    F(OPENSSL_sk_num)                                                                                                  \
    F(OPENSSL_sk_pop_free)                                                                                             \
    F(OPENSSL_sk_push)                                                                                                 \
    F(OPENSSL_sk_value)                                                                                                \
    F(PEM_read_bio_PrivateKey)                                                                                         \
    F(PEM_read_bio_X509)                                                                                               \
    F(PEM_write_bio_X509)                                                                                              \
    F(X509_NAME_ENTRY_get_data)                                                                                        \
    F(X509_NAME_dup)                                                                                                   \
    F(X509_NAME_free)                                                                                                  \
    F(X509_NAME_get_entry)                                                                                             \
    F(X509_NAME_get_index_by_NID)                                                                                      \
    F(X509_NAME_print_ex)                                                                                              \
    F(X509_STORE_add_cert)                                                                                             \
    F(X509_STORE_set_flags)                                                                                            \
    F(X509_check_host)                                                                                                 \
    F(X509_free)                                                                                                       \
    F(X509_get_ext_d2i)                                                                                                \
    F(X509_get_subject_name)                                                                                           \
    F(X509_up_ref)                                                                                                     \
    F(X509_verify_cert_error_string)                                                                                   \
    F(i2d_X509_NAME)

#define SSL_FUNCTIONS(F)                                                                                               \
    F(OPENSSL_init_ssl)                                                                                                \
    F(SSL_CIPHER_standard_name)                                                                                        \
    F(SSL_CTX_callback_ctrl)                                                                                           \
    F(SSL_CTX_check_private_key)                                                                                       \
    F(SSL_CTX_ctrl)                                                                                                    \
    F(SSL_CTX_free)                                                                                                    \
    F(SSL_CTX_get0_certificate)                                                                                        \
    F(SSL_CTX_get_cert_store)                                                                                          \
    F(SSL_CTX_new)                                                                                                     \
    F(SSL_CTX_set_alpn_select_cb)                                                                                      \
    F(SSL_CTX_set_cipher_list)                                                                                         \
    F(SSL_CTX_set_client_CA_list)                                                                                      \
    F(SSL_CTX_set_client_hello_cb)                                                                                     \
    F(SSL_CTX_set_options)                                                                                             \
    F(SSL_CTX_set_session_id_context)                                                                                  \
    F(SSL_CTX_set_verify)                                                                                              \
    F(SSL_CTX_use_PrivateKey)                                                                                          \
    F(SSL_CTX_use_certificate)                                                                                         \
    F(SSL_client_hello_get0_ext)                                                                                       \
    F(SSL_ctrl)                                                                                                        \
    F(SSL_do_handshake)                                                                                                \
    F(SSL_free)                                                                                                        \
    F(SSL_get0_alpn_selected)                                                                                          \
    F(SSL_get1_peer_certificate)                                                                                       \
    F(SSL_get_current_cipher)                                                                                          \
    F(SSL_get_error)                                                                                                   \
    F(SSL_get_ex_data)                                                                                                 \
    F(SSL_get_peer_cert_chain)                                                                                         \
    F(SSL_get_servername)                                                                                              \
    F(SSL_get_verify_result)                                                                                           \
    F(SSL_get_version)                                                                                                 \
    F(SSL_group_to_name)                                                                                               \
    F(SSL_new)                                                                                                         \
    F(SSL_read_ex)                                                                                                     \
    F(SSL_session_reused)                                                                                              \
    F(SSL_set_SSL_CTX)                                                                                                 \
    F(SSL_set_accept_state)                                                                                            \
    F(SSL_set_bio)                                                                                                     \
    F(SSL_set_ex_data)                                                                                                 \
    F(SSL_shutdown)                                                                                                    \
    F(SSL_write_ex)                                                                                                    \
    F(TLS_server_method)

#define FIELD(name) __typeof__(name) *name;
static struct {
    CRYPTO_FUNCTIONS(FIELD)
    SSL_FUNCTIONS(FIELD)
} o;

static bool loaded;
static pid_t loaded_by;
static BIO_METHOD *windows;

/* ---- the gate ---- */

#define SHUT_FOR_GOOD 0x80000000u
#define FORK_WAIT 20000 /* times 100 us, at most */
#define GATE_NAP 100

static uint32_t inside, shut; /* atomic */

/* False: the process is about to end. */
static bool
enter(void)
{
    for (int i = 0;; i++) {
        atomic_xadd(&inside, 1u);
        uint32_t why = atomic_load(&shut); /* pairs with shut_gate */
        if (GMP_LIKELY(why == 0) || (why != SHUT_FOR_GOOD && i >= FORK_WAIT))
            return true;
        atomic_xadd(&inside, (uint32_t)-1);
        if (why >= SHUT_FOR_GOOD)
            return false;
        usleep(GATE_NAP);
    }
}

static void
leave(void)
{
    atomic_xadd(&inside, (uint32_t)-1);
}

static void
shut_gate(uint32_t why)
{
    atomic_xadd(&shut, why);
    for (int i = 0; atomic_load(&inside) != 0 && i < FORK_WAIT; i++)
        usleep(GATE_NAP);
}

void
h2_tls_before_fork(void)
{
    if (loaded)
        shut_gate(1);
}

void
h2_tls_after_fork(void)
{
    if (loaded)
        atomic_xadd(&shut, (uint32_t)-1);
}

void
h2_tls_afterfork_child(void)
{
    inside = shut = 0;
}

/* Runs before OpenSSL's own handler, which was registered earlier. */
static void
at_exit(void)
{
    if (getpid() == loaded_by) /* a child that was not told of the fork counts threads that it does not have */
        shut_gate(SHUT_FOR_GOOD);
}

/* ---- loading ---- */

static int window_read(BIO *bio, char *buf, size_t n, size_t *done);
static int window_write(BIO *bio, const char *buf, size_t n, size_t *done);
static long window_ctrl(BIO *bio, int what, long num, void *ptr);

static void *
open_library(const char *folder, const char *name)
{
    char path[1024];
    if (folder == NULL)
        return dlopen(name, RTLD_NOW | RTLD_LOCAL);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

static bool
resolve(void *crypto, void *ssl, char *why, size_t size)
{
    const char *missing = NULL;
#define FIND(name)                                                                                                     \
    if ((*(void **)&o.name = dlsym(library, #name)) == NULL)                                                           \
        missing = #name;
    void *library = crypto;
    CRYPTO_FUNCTIONS(FIND)
    library = ssl;
    SSL_FUNCTIONS(FIND)
    if (missing != NULL)
        snprintf(why, size, "%s has no %s: OpenSSL 3.0 or newer is needed", GMP_LIBSSL, missing);
    return missing == NULL;
}

/* The system's library first: it gets its security fixes from there. */
bool
h2_tls_load(const char *folder, char *why, size_t size)
{
    if (loaded)
        return true;
    void *crypto = open_library(NULL, GMP_LIBCRYPTO), *ssl = crypto != NULL ? open_library(NULL, GMP_LIBSSL) : NULL;
    if (ssl == NULL && folder != NULL) {
        crypto = open_library(folder, GMP_LIBCRYPTO);
        ssl = crypto != NULL ? open_library(folder, GMP_LIBSSL) : NULL;
    }
    if (ssl == NULL) {
        const char *error = dlerror();
        snprintf(why, size, "TLS needs OpenSSL 3 (%s), which cannot be loaded: %s", GMP_LIBSSL,
                 error != NULL ? error : "not found");
        return false;
    }
    if (!resolve(crypto, ssl, why, size))
        return false;
    windows = NULL;
    if (o.OPENSSL_init_ssl(0, NULL) != 1 ||
        (windows = o.BIO_meth_new(o.BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "gmp")) == NULL) {
        snprintf(why, size, "OpenSSL could not be initialized");
        return false;
    }
    o.BIO_meth_set_read_ex(windows, window_read);
    o.BIO_meth_set_write_ex(windows, window_write);
    o.BIO_meth_set_ctrl(windows, window_ctrl);
    loaded_by = getpid();
    atexit(at_exit);
    loaded = true;
    return true;
}

/* What OpenSSL said last, in its words. */
static const char *
reason(void)
{
    unsigned long code = o.ERR_peek_last_error();
    const char *text = code != 0 ? o.ERR_reason_error_string(code) : NULL;
    return text != NULL ? text : "no reason given";
}

/* ---- credentials ---- */

typedef struct TlsConn TlsConn;

typedef struct Config {
    uint32_t refs; /* atomic */
    uint32_t n;
    SSL_CTX *ctx[];
} Config;

struct H2Tls {
    uint32_t refs; /* atomic */
    Mutex lock;
    Config *config; /* NULL: none yet; a reference */
    bool hold;      /* new connections wait for h2_tls_release */
    uint64_t asked, released;
    TlsConn *waiting; /* with a reference to their connections */
};

static void
config_unref(Config *config)
{
    if (config == NULL || atomic_xadd(&config->refs, (uint32_t)-1) != 1)
        return;
    for (uint32_t i = 0; i < config->n; i++)
        o.SSL_CTX_free(config->ctx[i]);
    free(config);
}

/* Ciphers for TLS 1.2: those that HTTP/2 does not ban (RFC 9113, appendix A).  TLS 1.3 has no others. */
static const char ciphers[] = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
                              "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305";

static int hello(SSL *ssl, int *alert, void *arg);
static int choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *n, const unsigned char *in,
                           unsigned int size, void *arg);
static int choose_server(SSL *ssl, int *alert, void *arg);

static int
no_password(char *buf, int size, int writing, void *encrypted)
{
    (void)buf, (void)size, (void)writing;
    *(bool *)encrypted = true;
    return -1;
}

static BIO *
text_bio(const H2Pem *pem)
{
    return pem->len <= INT32_MAX ? o.BIO_new_mem_buf(pem->data, (int)pem->len) : NULL;
}

/* Whether reading certificates ended because there are no more, and not in the middle of a broken one. */
static bool
at_end(void)
{
    unsigned long code = o.ERR_peek_last_error();
    return ERR_GET_LIB(code) == ERR_LIB_PEM && ERR_GET_REASON(code) == PEM_R_NO_START_LINE;
}

/* The functions below return NULL, or what is wrong. */

static const char *
use_chain(SSL_CTX *ctx, const H2Pem *pem)
{
    BIO *bio = text_bio(pem);
    const char *wrong = NULL;
    bool unused;
    int n = 0;
    while (bio != NULL && wrong == NULL) {
        X509 *cert = o.PEM_read_bio_X509(bio, NULL, no_password, &unused);
        if (cert == NULL)
            break;
        if (n++ == 0 ? o.SSL_CTX_use_certificate(ctx, cert) != 1
                     : o.SSL_CTX_ctrl(ctx, SSL_CTRL_CHAIN_CERT, 1, cert) != 1)
            wrong = "the certificate chain cannot be used";
        o.X509_free(cert);
    }
    if (wrong == NULL && n == 0)
        wrong = "the certificate chain has no certificate in PEM";
    else if (wrong == NULL && !at_end())
        wrong = "a certificate of the chain is broken";
    o.BIO_free(bio);
    return wrong;
}

static const char *
use_key(SSL_CTX *ctx, const H2Pem *pem)
{
    BIO *bio = text_bio(pem);
    bool encrypted = false;
    EVP_PKEY *key = bio != NULL ? o.PEM_read_bio_PrivateKey(bio, NULL, no_password, &encrypted) : NULL;
    const char *wrong = NULL;
    if (key == NULL)
        wrong = encrypted ? "the private key is encrypted: decrypt it first" : "the private key is none in PEM";
    else if (o.SSL_CTX_use_PrivateKey(ctx, key) != 1 || o.SSL_CTX_check_private_key(ctx) != 1)
        wrong = "the private key does not fit the certificate";
    o.EVP_PKEY_free(key);
    o.BIO_free(bio);
    return wrong;
}

/* Clients are told the roots' names, to choose a certificate by, unless they are too many for a message. */
#define NAMES_MAX 32768

static const char *
use_roots(SSL_CTX *ctx, const H2Pem *pem)
{
    BIO *bio = text_bio(pem);
    OPENSSL_STACK *names = o.OPENSSL_sk_new_null();
    X509_STORE *store = o.SSL_CTX_get_cert_store(ctx);
    const char *wrong = NULL;
    bool unused;
    int n = 0, size = 0;
    o.X509_STORE_set_flags(store, X509_V_FLAG_PARTIAL_CHAIN); /* as grpcio: an intermediate one is as good as a root */
    while (bio != NULL && names != NULL && wrong == NULL) {
        X509 *cert = o.PEM_read_bio_X509(bio, NULL, no_password, &unused);
        if (cert == NULL)
            break;
        X509_NAME *name = o.X509_NAME_dup(o.X509_get_subject_name(cert));
        if (o.X509_STORE_add_cert(store, cert) != 1 || name == NULL || o.OPENSSL_sk_push(names, name) == 0)
            wrong = "a root certificate cannot be used";
        size += name != NULL ? o.i2d_X509_NAME(name, NULL) : 0;
        o.X509_free(cert);
        n++;
    }
    if (wrong == NULL && n == 0)
        wrong = "root_certificates has no certificate in PEM";
    else if (wrong == NULL && !at_end())
        wrong = "a root certificate is broken";
    o.BIO_free(bio);
    if (size <= NAMES_MAX)
        o.SSL_CTX_set_client_CA_list(ctx, (STACK_OF(X509_NAME) *)names); /* the context's from now on */
    else
        o.OPENSSL_sk_pop_free(names, (OPENSSL_sk_freefunc)o.X509_NAME_free);
    o.SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    return wrong;
}

/* NULL, and what is wrong. */
static SSL_CTX *
new_context(const H2Pem *key, const H2Pem *chain, const H2Pem *roots, const char **wrong)
{
    static const unsigned char id[] = "gmp.grpc";
    *wrong = "OpenSSL refuses its settings";
    SSL_CTX *ctx = o.SSL_CTX_new(o.TLS_server_method());
    if (ctx == NULL)
        return NULL;
    o.SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
    o.SSL_CTX_ctrl(ctx, SSL_CTRL_MODE, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER, NULL);
    /* Tickets, no cache: who resumes brings his session along. */
    o.SSL_CTX_ctrl(ctx, SSL_CTRL_SET_SESS_CACHE_MODE, SSL_SESS_CACHE_OFF, NULL);
    o.SSL_CTX_set_alpn_select_cb(ctx, choose_protocol, NULL);
    o.SSL_CTX_set_client_hello_cb(ctx, hello, NULL);
    /* The system's configuration may ask for more. */
    long oldest = o.SSL_CTX_ctrl(ctx, SSL_CTRL_GET_MIN_PROTO_VERSION, 0, NULL);
    if (o.SSL_CTX_ctrl(ctx, SSL_CTRL_SET_MIN_PROTO_VERSION, oldest > TLS1_2_VERSION ? oldest : TLS1_2_VERSION, NULL) ==
            1 &&
        o.SSL_CTX_set_cipher_list(ctx, ciphers) == 1 && o.SSL_CTX_set_session_id_context(ctx, id, sizeof id) == 1 &&
        (*wrong = use_chain(ctx, chain)) == NULL && (*wrong = use_key(ctx, key)) == NULL &&
        (roots == NULL || (*wrong = use_roots(ctx, roots)) == NULL))
        return ctx;
    o.SSL_CTX_free(ctx);
    return NULL;
}

H2Tls *
h2_tls_new(void)
{
    H2Tls *tls = calloc(1, sizeof *tls);
    if (tls != NULL)
        tls->refs = 1;
    return tls;
}

void
h2_tls_ref(H2Tls *tls)
{
    atomic_xadd(&tls->refs, 1u);
}

void
h2_tls_unref(H2Tls *tls)
{
    if (atomic_xadd(&tls->refs, (uint32_t)-1) != 1)
        return;
    if (tls->config == NULL || enter()) {
        config_unref(tls->config);
        if (tls->config != NULL)
            leave();
    }
    free(tls);
}

bool
h2_tls_set(H2Tls *tls, const H2Pem *keys, const H2Pem *chains, uint32_t n, const H2Pem *roots, char *why, size_t size)
{
    Config *config = calloc(1, sizeof *config + n * sizeof config->ctx[0]);
    if (config == NULL) {
        snprintf(why, size, "out of memory");
        return false;
    }
    config->refs = 1;
    for (; config->n < n; config->n++) {
        const char *wrong;
        o.ERR_clear_error();
        SSL_CTX *ctx = new_context(&keys[config->n], &chains[config->n], roots, &wrong);
        if (ctx == NULL) {
            snprintf(why, size, "pair %u: %s (%s)", config->n, wrong, reason());
            o.ERR_clear_error();
            config_unref(config);
            return false;
        }
        config->ctx[config->n] = ctx;
    }
    o.ERR_clear_error(); /* the end of the certificates counts as one */
    if (n > 1) {
        o.SSL_CTX_callback_ctrl(config->ctx[0], SSL_CTRL_SET_TLSEXT_SERVERNAME_CB, (void (*)(void))choose_server);
        o.SSL_CTX_ctrl(config->ctx[0], SSL_CTRL_SET_TLSEXT_SERVERNAME_ARG, 0, config);
    }
    mutex_lock(&tls->lock);
    Config *old = tls->config;
    tls->config = config;
    mutex_unlock(&tls->lock);
    config_unref(old);
    return true;
}

void
h2_tls_hold(H2Tls *tls)
{
    tls->hold = true;
}

/* ---- a connection ---- */

enum { GOING, CLOSED, FAILED };

struct TlsConn {
    H2Conn *conn;
    H2Tls *tls;      /* a reference */
    TlsConn *next;   /* H2Tls.lock */
    uint64_t ticket; /* to be released first; 0: no need */

    /* The owner's. */
    Config *config; /* during the handshake; a reference */
    SSL *ssl;       /* from the first byte until the end */
    const char *in; /* received, while OpenSSL is called */
    size_t in_len;
    char *out; /* to be sent, after it was */
    size_t out_len, out_cap;
    char *rest; /* what the socket did not take */
    size_t rest_off, rest_len;
    const char *why; /* it failed, in our words */
    uint8_t over;    /* GOING ... */
    bool got_any, warned;

    /* Constant after the handshake, until the last reference to the connection goes. */
    bool done; /* atomic */
    bool reused;
    const char *version, *cipher; /* OpenSSL's */
    char group[32];
    char *server; /* that the client asked for; NULL */
    X509 *cert;   /* the client's; NULL: it was not asked for one */
    char *chain;  /* what else it sent, as PEM */
    size_t chain_len;
    char *peer; /* GIL: h2_tls_peer's pairs, once made */
    uint32_t npeer;
};

#define RECORD_MAX (18 * 1024) /* a whole record that OpenSSL may have of an earlier read */
#define REST_MAX (256 * 1024)

/* Keeps what is left of the output.  False: it cannot. */
static bool
keep(TlsConn *t, size_t off)
{
    size_t n = t->out_len - off;
    char *rest = t->rest_len + n <= REST_MAX ? malloc(t->rest_len + n) : NULL;
    if (rest == NULL)
        return false;
    if (t->rest_len != 0)
        memcpy(rest, t->rest + t->rest_off, t->rest_len);
    memcpy(rest + t->rest_len, t->out + off, n);
    free(t->rest);
    t->rest = rest;
    t->rest_off = 0;
    t->rest_len += n;
    t->conn->held = true;
    return true;
}

static int
window_read(BIO *bio, char *buf, size_t n, size_t *done)
{
    TlsConn *t = o.BIO_get_data(bio);
    o.BIO_clear_flags(bio, BIO_FLAGS_RWS | BIO_FLAGS_SHOULD_RETRY);
    *done = n < t->in_len ? n : t->in_len;
    if (*done == 0) {
        o.BIO_set_flags(bio, BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY);
        return 0;
    }
    memcpy(buf, t->in, *done);
    t->in += *done;
    t->in_len -= *done;
    return 1;
}

static int
window_write(BIO *bio, const char *buf, size_t n, size_t *done)
{
    TlsConn *t = o.BIO_get_data(bio);
    *done = 0;
    if (n > t->out_cap - t->out_len) { /* a very long certificate chain */
        if (n > t->out_cap || !keep(t, 0))
            return 0;
        t->out_len = 0;
    }
    memcpy(t->out + t->out_len, buf, n);
    t->out_len += n;
    *done = n;
    return 1;
}

static long
window_ctrl(BIO *bio, int what, long num, void *ptr)
{
    (void)bio, (void)num, (void)ptr;
    return what == BIO_CTRL_FLUSH;
}

/* ---- callbacks of the handshake ---- */

static TlsConn *
conn_of(SSL *ssl)
{
    return o.SSL_get_ex_data(ssl, 0);
}

static int
hello(SSL *ssl, int *alert, void *arg)
{
    (void)arg;
    const unsigned char *list;
    size_t n;
    if (o.SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_application_layer_protocol_negotiation, &list, &n) == 1)
        return SSL_CLIENT_HELLO_SUCCESS;
    conn_of(ssl)->why = "the client does not offer HTTP/2 (no ALPN)";
    *alert = SSL_AD_NO_APPLICATION_PROTOCOL;
    return SSL_CLIENT_HELLO_ERROR;
}

static int
choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *n, const unsigned char *in, unsigned int size,
                void *arg)
{
    (void)arg;
    for (unsigned int i = 0; i < size; i += 1u + in[i])
        if (in[i] == 2 && i + 2 < size && memcmp(in + i + 1, "h2", 2) == 0) {
            *out = in + i + 1;
            *n = 2;
            return SSL_TLSEXT_ERR_OK;
        }
    conn_of(ssl)->why = "the client does not offer HTTP/2 (no h2 in its ALPN list)";
    return SSL_TLSEXT_ERR_ALERT_FATAL;
}

/* With several keys: that of the first certificate which has the name; else the first one. */
static int
choose_server(SSL *ssl, int *alert, void *arg)
{
    (void)alert;
    const Config *config = arg;
    const char *name = o.SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
    for (uint32_t i = 0; name != NULL && i < config->n; i++)
        if (o.X509_check_host(o.SSL_CTX_get0_certificate(config->ctx[i]), name, 0, 0, NULL) == 1) {
            o.SSL_set_SSL_CTX(ssl, config->ctx[i]);
            return SSL_TLSEXT_ERR_OK;
        }
    return SSL_TLSEXT_ERR_NOACK;
}

/* ---- bytes ---- */

static void
warn(TlsConn *t, const char *what, const char *why, const char *more)
{
    if (!t->warned)
        h2_tell(t->conn->server, WHY_TLS, "%s: %s: %s%s%s", t->conn->peer, what, why, more != NULL ? ": " : "",
                more != NULL ? more : "");
    t->warned = true;
}

static void
failed(TlsConn *t)
{
    unsigned long code = o.ERR_peek_error();
    const char *why = t->why != NULL ? t->why : code != 0 ? o.ERR_reason_error_string(code) : NULL, *more = NULL;
    if (t->why == NULL && ERR_GET_LIB(code) == ERR_LIB_SSL && ERR_GET_REASON(code) == SSL_R_CERTIFICATE_VERIFY_FAILED)
        more = o.X509_verify_cert_error_string(o.SSL_get_verify_result(t->ssl));
    warn(t, t->done ? "TLS failed" : "TLS handshake failed", why != NULL ? why : "no reason given", more);
    o.ERR_clear_error(); /* the queue is the thread's: Python's ssl module finds it empty */
    t->over = FAILED;
}

/* Sends what was kept.  0, -EAGAIN, or an error. */
static ssize_t
send_rest(TlsConn *t)
{
    while (t->rest_len != 0) {
        ssize_t n = h2_plain.write(t->conn, t->rest + t->rest_off, t->rest_len);
        if (n < 0)
            return n;
        t->rest_off += (size_t)n;
        t->rest_len -= (size_t)n;
    }
    free(t->rest);
    t->rest = NULL;
    t->conn->held = false;
    return 0;
}

/* Sends what OpenSSL has put out.  0, or an error. */
static ssize_t
send_out(TlsConn *t)
{
    size_t off = 0;
    ssize_t n = 0;
    if (t->rest_len == 0)
        while (off < t->out_len && (n = h2_plain.write(t->conn, t->out + off, t->out_len - off)) > 0)
            off += (size_t)n;
    if (off < t->out_len && (n >= 0 || n == -EAGAIN))
        n = keep(t, off) ? 0 : -ENOBUFS;
    t->out = NULL;
    t->out_len = t->out_cap = 0;
    return n < 0 ? n : 0;
}

/* ---- calls of OpenSSL; on g0's stack ---- */

typedef struct Call {
    TlsConn *t;
    char *buf;
    const char *data;
    size_t n;
    ssize_t r;
} Call;

static void
note_client(TlsConn *t)
{
    SSL *ssl = t->ssl;
    const char *server = o.SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
    int group = (int)o.SSL_ctrl(ssl, SSL_CTRL_GET_NEGOTIATED_GROUP, 0, NULL);
    const char *name = group != 0 ? o.SSL_group_to_name(ssl, group) : NULL;
    snprintf(t->group, sizeof t->group, "%s", name != NULL ? name : "");
    t->server = server != NULL ? strdup(server) : NULL;
    t->version = o.SSL_get_version(ssl);
    t->cipher = o.SSL_CIPHER_standard_name(o.SSL_get_current_cipher(ssl));
    t->reused = o.SSL_session_reused(ssl) == 1;
    t->cert = o.SSL_get1_peer_certificate(ssl);
    OPENSSL_STACK *chain = t->cert != NULL ? (OPENSSL_STACK *)o.SSL_get_peer_cert_chain(ssl) : NULL;
    int n = chain != NULL ? o.OPENSSL_sk_num(chain) : 0;
    BIO *bio = n > 0 ? o.BIO_new(o.BIO_s_mem()) : NULL;
    for (int i = 0; bio != NULL && i < n; i++)
        o.PEM_write_bio_X509(bio, o.OPENSSL_sk_value(chain, i));
    char *text;
    long len = bio != NULL ? o.BIO_ctrl(bio, BIO_CTRL_INFO, 0, &text) : 0;
    if (len > 0 && (t->chain = malloc((size_t)len)) != NULL) {
        memcpy(t->chain, text, (size_t)len);
        t->chain_len = (size_t)len;
    }
    o.BIO_free(bio);
}

/* True: it is over; the rest of the input is the client's. */
static bool
shake(TlsConn *t)
{
    int r = o.SSL_do_handshake(t->ssl);
    if (r != 1) {
        int error = o.SSL_get_error(t->ssl, r);
        if (error != SSL_ERROR_WANT_READ)
            failed(t);
        return false;
    }
    const unsigned char *protocol;
    unsigned int n;
    o.SSL_get0_alpn_selected(t->ssl, &protocol, &n);
    if (n == 0) {
        t->why = "the client does not offer HTTP/2 (no ALPN)";
        failed(t);
        return false;
    }
    note_client(t);
    config_unref(t->config);
    t->config = NULL;
    atomic_store_release(&t->done, true); /* pairs with h2_tls_peer */
    t->conn->shaking = false;
    return true;
}

/* All of the input is taken: what it decrypts to has room in buf. */
static void
read_call(void *arg)
{
    Call *call = arg;
    TlsConn *t = call->t;
    size_t total = 0, n;
    o.ERR_clear_error();
    if (t->done || shake(t))
        while (total < call->n) {
            int r = o.SSL_read_ex(t->ssl, call->buf + total, call->n - total, &n);
            if (r == 1) {
                total += n;
                continue;
            }
            switch (o.SSL_get_error(t->ssl, r)) {
            case SSL_ERROR_WANT_READ:
                break;
            case SSL_ERROR_ZERO_RETURN:
                t->over = CLOSED;
                break;
            default:
                failed(t);
                break;
            }
            break;
        }
    call->r = (ssize_t)total;
}

static void
write_call(void *arg)
{
    Call *call = arg;
    TlsConn *t = call->t;
    size_t n;
    o.ERR_clear_error();
    int r = o.SSL_write_ex(t->ssl, call->data, call->n, &n);
    call->r = (ssize_t)n;
    if (r != 1) {
        failed(t);
        call->r = -EPROTO;
    }
}

static void
close_call(void *arg)
{
    TlsConn *t = arg;
    o.ERR_clear_error();
    if (t->done && t->over != FAILED)
        (void)o.SSL_shutdown(t->ssl);
    o.ERR_clear_error();
    o.SSL_free(t->ssl);
    t->ssl = NULL;
}

static void
free_call(void *arg)
{
    TlsConn *t = arg;
    o.X509_free(t->cert);
    config_unref(t->config);
}

/* Its SSL, of the certificates there are now.  False: no memory. */
static bool
begin(TlsConn *t)
{
    mutex_lock(&t->tls->lock);
    t->config = t->tls->config;
    if (t->config != NULL)
        atomic_xadd(&t->config->refs, 1u);
    mutex_unlock(&t->tls->lock);
    t->ssl = t->config != NULL ? o.SSL_new(t->config->ctx[0]) : NULL;
    BIO *bio = t->ssl != NULL ? o.BIO_new(windows) : NULL;
    if (bio == NULL || o.SSL_set_ex_data(t->ssl, 0, t) != 1) {
        o.BIO_free(bio);
        o.ERR_clear_error();
        return false;
    }
    o.BIO_set_data(bio, t);
    o.BIO_set_init(bio, 1);
    o.SSL_set_bio(t->ssl, bio, bio);
    o.SSL_set_accept_state(t->ssl);
    return true;
}

static void
begin_call(void *arg)
{
    Call *call = arg;
    call->r = begin(call->t) ? 0 : -ENOMEM;
}

/* ---- what h2_conn.c calls ---- */

static int
tls_open(H2Conn *c, void *arg)
{
    H2Tls *tls = arg;
    TlsConn *t = calloc(1, sizeof *t);
    if (t == NULL)
        return GMP_ENOMEM;
    t->conn = c;
    t->tls = tls;
    h2_tls_ref(tls);
    c->tls = t;
    c->shaking = true;
    mutex_lock(&tls->lock);
    if (tls->hold) {
        t->ticket = ++tls->asked;
        t->next = tls->waiting;
        tls->waiting = t;
        atomic_xadd(&c->refs, 1u);
    }
    mutex_unlock(&tls->lock);
    if (t->ticket != 0)
        h2_notice(c->server);
    return GMP_OK;
}

static bool
may_begin(TlsConn *t)
{
    if (t->ticket == 0)
        return true;
    mutex_lock(&t->tls->lock);
    bool yes = t->ticket <= t->tls->released;
    mutex_unlock(&t->tls->lock);
    return yes;
}

static ssize_t
tls_read(H2Conn *c, char *buf, size_t n)
{
    static const char http2[] = "PRI * HTTP/2";
    TlsConn *t = c->tls;
    c->again = false;
    if (t->over != GOING)
        return t->over == CLOSED ? 0 : -EPROTO;
    if (t->ssl == NULL && !may_begin(t))
        return -EAGAIN; /* h2_tls_release kicks */
    H2Buf *b = h2_buf_get();
    if (b == NULL)
        return -ENOMEM;
    Call call = {.t = t, .buf = buf, .n = n};
    call.r = h2_plain.read(c, b->in, n - RECORD_MAX);
    if (call.r <= 0)
        goto done;
    if (!t->got_any && (size_t)call.r >= sizeof http2 - 1 && memcmp(b->in, http2, sizeof http2 - 1) == 0)
        t->why = "the client speaks HTTP/2 without TLS";
    t->got_any = true;
    t->in = b->in;
    t->in_len = (size_t)call.r;
    t->out = b->out;
    t->out_cap = sizeof b->out;
    if (!enter()) {
        call.r = -EPIPE;
        goto done;
    }
    if (t->ssl == NULL)
        g0stack(begin_call, &call);
    if (call.r >= 0)
        g0stack(read_call, &call);
    leave();
    t->in = NULL;
    t->in_len = 0;
    ssize_t sent = call.r >= 0 ? send_out(t) : 0;
    if (sent < 0)
        call.r = sent;
    else if (call.r == 0 && t->over != CLOSED)
        call.r = t->over == FAILED ? -EPROTO : -EAGAIN;
    else if (t->over != GOING)
        c->again = true; /* to hear of it */
done:
    h2_buf_put(b);
    return call.r;
}

static ssize_t
tls_write(H2Conn *c, const char *data, size_t n)
{
    TlsConn *t = c->tls;
    ssize_t r = send_rest(t);
    if (r < 0 || n == 0)
        return r;
    if (t->over == FAILED || t->ssl == NULL)
        return -EPIPE;
    H2Buf *b = h2_buf_get();
    if (b == NULL)
        return -ENOMEM;
    /* What it is encrypted to has room in b->out. */
    Call call = {.t = t, .data = data, .n = n < H2_IN ? n : H2_IN};
    t->out = b->out;
    t->out_cap = sizeof b->out;
    if (enter()) {
        g0stack(write_call, &call);
        leave();
        r = send_out(t);
        if (r < 0 && call.r >= 0)
            call.r = r;
    }
    else {
        call.r = -EPIPE;
    }
    h2_buf_put(b);
    return call.r;
}

/* The client is to see the alert, which unread input would destroy: the system answers it by a reset. */
static void
linger(H2Conn *c)
{
    char waste[4096];
    shutdown(c->fd, SHUT_WR);
    for (int i = 0; i < 64 && recv(c->fd, waste, sizeof waste, MSG_DONTWAIT) > 0; i++)
        ;
}

static void
tls_close(H2Conn *c)
{
    TlsConn *t = c->tls;
    char out[1024];
    if (!t->done && !t->warned && !c->draining) {
        int64_t limit = c->server->options.handshake_timeout;
        if (limit != 0 && nanotime() >= c->opened + limit)
            warn(t, "TLS handshake failed",
                 t->ticket != 0 && t->ssl == NULL && !may_begin(t) ? "no certificates came in time"
                                                                   : "it took too long",
                 NULL);
        else if (t->got_any) /* one that connects and goes wants to know whether the port is open */
            warn(t, "TLS handshake failed", "the connection was closed", NULL);
    }
    if (t->ssl != NULL && enter()) {
        t->out = out;
        t->out_cap = sizeof out;
        g0stack(close_call, t);
        leave();
        if (t->rest_len == 0)
            (void)send_out(t);
    }
    if (t->over == FAILED)
        linger(c);
    free(t->rest);
    t->rest = NULL;
    t->rest_len = 0;
}

static void
tls_free(H2Conn *c)
{
    TlsConn *t = c->tls;
    if (t == NULL)
        return;
    if ((t->cert != NULL || t->config != NULL) && enter()) {
        g0stack(free_call, t);
        leave();
    }
    h2_tls_unref(t->tls);
    free(t->rest);
    free(t->server);
    free(t->chain);
    free(t->peer);
    free(t);
}

static void
tls_forget(void *tls)
{
    h2_tls_unref(tls);
}

const H2Io h2_tls = {
    .open = tls_open, .read = tls_read, .write = tls_write, .close = tls_close, .free = tls_free, .forget = tls_forget};

/* ---- connections that wait for certificates ---- */

uint64_t
h2_tls_waiting(H2Tls *tls)
{
    mutex_lock(&tls->lock);
    uint64_t mark = tls->waiting != NULL ? tls->asked : 0;
    mutex_unlock(&tls->lock);
    return mark;
}

void
h2_tls_release(H2Tls *tls, uint64_t mark)
{
    TlsConn *freed = NULL;
    mutex_lock(&tls->lock);
    if (mark > tls->released)
        tls->released = mark;
    for (TlsConn **link = &tls->waiting; *link != NULL;) {
        TlsConn *t = *link;
        if (t->ticket <= mark) {
            *link = t->next;
            t->next = freed;
            freed = t;
        }
        else {
            link = &t->next;
        }
    }
    mutex_unlock(&tls->lock);
    while (freed != NULL) {
        TlsConn *t = freed;
        freed = t->next;
        h2_conn_kick(t->conn);
        h2_conn_unref(t->conn);
    }
}

/* ---- what is known of a client, in grpcio's words ---- */

typedef struct Pairs {
    char *data;
    size_t len, cap;
    uint32_t n;
    bool failed;
} Pairs;

static void
put(Pairs *p, const char *name, const char *value, size_t len)
{
    size_t need = p->len + H2_PAIR_HEAD + strlen(name) + len;
    if (need > p->cap) {
        char *data = realloc(p->data, need * 2);
        if (data == NULL) {
            p->failed = true;
            return;
        }
        p->data = data;
        p->cap = need * 2;
    }
    h2_put_pair(p->data + p->len, name, (uint32_t)strlen(name), value, (uint32_t)len);
    p->len = need;
    p->n++;
}

static void
put_text(Pairs *p, const char *name, const char *value)
{
    put(p, name, value, strlen(value));
}

static void
put_bio(Pairs *p, const char *name, BIO *bio)
{
    char *text;
    long n = bio != NULL ? o.BIO_ctrl(bio, BIO_CTRL_INFO, 0, &text) : -1;
    if (n >= 0)
        put(p, name, text != NULL ? text : "", (size_t)n);
    else
        p->failed = true;
    o.BIO_free(bio);
}

/* BoringSSL's names, which grpcio shows. */
static const char *
group_name(const char *name)
{
    static const char *const names[][2] = {
        {"secp256r1", "P-256"}, {"secp384r1", "P-384"}, {"secp521r1", "P-521"}, {"x25519", "X25519"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i][0]) == 0)
            return names[i][1];
    return name;
}

/* spiffe://domain/path, the only URI of its certificate. */
static bool
is_spiffe_id(const char *uri, size_t n)
{
    const char *domain = uri + 9, *end = uri + n;
    if (n <= 9 || n > 2048 || strncasecmp(uri, "spiffe://", 9) != 0)
        return false;
    const char *slash = memchr(domain, '/', (size_t)(end - domain));
    return slash != NULL && slash != domain && slash - domain <= 255 && slash + 1 < end;
}

static void
put_names(Pairs *p, X509 *cert)
{
    static const char any[] = "x509_subject_alternative_name";
    OPENSSL_STACK *names = o.X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
    int n = names != NULL ? o.OPENSSL_sk_num(names) : 0, uris = 0;
    const char *uri = NULL;
    size_t uri_len = 0;
    for (int i = 0; i < n; i++) {
        const GENERAL_NAME *name = o.OPENSSL_sk_value(names, i);
        const char *kind = name->type == GEN_DNS     ? "peer_dns"
                           : name->type == GEN_URI   ? "peer_uri"
                           : name->type == GEN_EMAIL ? "peer_email"
                           : name->type == GEN_IPADD ? "peer_ip"
                                                     : NULL;
        if (kind == NULL) {
            put_text(p, any, "other types of SAN");
            continue;
        }
        const char *value = (const char *)o.ASN1_STRING_get0_data(name->d.ia5);
        size_t len = (size_t)o.ASN1_STRING_length(name->d.ia5);
        char address[INET6_ADDRSTRLEN];
        if (name->type == GEN_IPADD) {
            if ((len != 4 && len != 16) ||
                inet_ntop(len == 4 ? AF_INET : AF_INET6, value, address, sizeof address) == NULL)
                continue;
            value = address;
            len = strlen(address);
        }
        put(p, any, value, len);
        put(p, kind, value, len);
        if (name->type == GEN_URI && uris++ == 0) {
            uri = value;
            uri_len = len;
        }
    }
    if (uris == 1 && is_spiffe_id(uri, uri_len))
        put(p, "peer_spiffe_id", uri, uri_len);
    o.GENERAL_NAMES_free((GENERAL_NAMES *)names);
}

static void
put_cert(Pairs *p, X509 *cert)
{
    X509_NAME *subject = o.X509_get_subject_name(cert);
    BIO *bio = o.BIO_new(o.BIO_s_mem());
    if (bio != NULL)
        o.X509_NAME_print_ex(bio, subject, 0, XN_FLAG_RFC2253);
    put_bio(p, "x509_subject", bio);
    int at = o.X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
    unsigned char *text = NULL;
    int n = at >= 0 ? o.ASN1_STRING_to_UTF8(&text, o.X509_NAME_ENTRY_get_data(o.X509_NAME_get_entry(subject, at))) : 0;
    put(p, "x509_common_name", text != NULL ? (char *)text : "", n > 0 ? (size_t)n : 0);
    o.CRYPTO_free(text, __FILE__, __LINE__);
    bio = o.BIO_new(o.BIO_s_mem());
    if (bio != NULL)
        o.PEM_write_bio_X509(bio, cert);
    put_bio(p, "x509_pem_cert", bio);
    put_names(p, cert);
}

const char *
h2_tls_peer(H2Conn *c, uint32_t *n)
{
    *n = 0;
    TlsConn *t = c->tls;
    if (c->io != &h2_tls || !atomic_load_acquire(&t->done)) /* pairs with shake */
        return NULL;
    if (t->peer == NULL) {
        Pairs p = {0};
        put_text(&p, "transport_security_type", "ssl");
        if (t->cert != NULL)
            put_cert(&p, t->cert);
        if (t->chain != NULL)
            put(&p, "x509_pem_cert_chain", t->chain, t->chain_len);
        put_text(&p, "security_level", "TSI_PRIVACY_AND_INTEGRITY");
        put_text(&p, "ssl_session_reused", t->reused ? "true" : "false");
        if (t->server != NULL)
            put_text(&p, "ssl_requested_server_name", t->server);
        put_text(&p, "ssl_tls_version", t->version);
        if (t->group[0] != 0)
            put_text(&p, "ssl_negotiated_key_exchange_group", group_name(t->group));
        o.ERR_clear_error();
        if (p.failed) {
            free(p.data);
            return NULL;
        }
        t->peer = p.data;
        t->npeer = p.n;
    }
    *n = t->npeer;
    return t->peer;
}

bool
h2_tls_security(H2Conn *c, const char **version, const char **cipher)
{
    TlsConn *t = c->tls;
    if (c->io != &h2_tls)
        return false;
    bool done = atomic_load_acquire(&t->done); /* pairs with shake */
    *version = done ? t->version : "";
    *cipher = done ? t->cipher : "";
    return true;
}
