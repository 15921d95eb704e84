/* h2_notls.c: in place of h2_tls.c in a build without OpenSSL: credentials cannot be made, and it is said why. */
#include "h2.h"

#include <stdio.h>

bool
h2_tls_load(const char *folder, char *why, size_t size)
{
    (void)folder;
    snprintf(why, size, "gmp was built without OpenSSL: for TLS install libssl-dev and pkg-config and build gmp again");
    return false;
}

H2Tls *
h2_tls_new(void)
{
    return NULL;
}

void
h2_tls_ref(H2Tls *tls)
{
    (void)tls;
}

void
h2_tls_unref(H2Tls *tls)
{
    (void)tls;
}

bool
h2_tls_set(H2Tls *tls, const H2Pem *keys, const H2Pem *chains, uint32_t n, const H2Pem *roots, char *why, size_t size)
{
    (void)tls, (void)keys, (void)chains, (void)n, (void)roots;
    return h2_tls_load(NULL, why, size);
}

void
h2_tls_hold(H2Tls *tls)
{
    (void)tls;
}

uint64_t
h2_tls_waiting(H2Tls *tls)
{
    (void)tls;
    return 0;
}

void
h2_tls_release(H2Tls *tls, uint64_t mark)
{
    (void)tls, (void)mark;
}

const char *
h2_tls_peer(H2Conn *c, uint32_t *n)
{
    (void)c;
    *n = 0;
    return NULL;
}

bool
h2_tls_security(H2Conn *c, const char **version, const char **cipher)
{
    (void)c, (void)version, (void)cipher;
    return false;
}

/* Never used: there are no credentials. */
const H2Io h2_tls;

void
h2_tls_before_fork(void)
{
}

void
h2_tls_after_fork(void)
{
}

void
h2_tls_afterfork_child(void)
{
}
