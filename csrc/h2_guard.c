/* h2_guard.c: how much a client may ask of a connection without any use, and what is told of those that ask more.
 *
 * What is limited, each by an option
 *   max_resets      calls that end by a reset in their first second, not answered yet: by the client's RST_STREAM or by a frame that
 *                   makes us reset them
 *   max_frames      frames that ask for nothing: SETTINGS, PING, PRIORITY, WINDOW_UPDATE, RST_STREAM, empty DATA, those on
 *                   streams that are gone, malformed requests.  A frame of data in either direction, and a message, earn two of them
 *   max_streams     calls at once, and again as many that were cancelled and are not done yet; beyond that new ones are refused
 *   max_headers     metadata: four times as much, or BLOCK_LEAST, ends the connection, more than once as much only the call
 *   max_buffered    received bytes that no handler has taken yet; beyond that calls fail
 *   header_timeout  from a header block's first frame to its last
 *   write_timeout   of the socket taking no byte
 * And not by an option: a connection with UNSTARTED_MOST calls that nobody has started on, or with OUT_MOST frames waiting for a socket that
 * takes none, is not read from until that is better.
 *
 * The first two are meters: a burst of that many, and a tenth of it per second from then on.  An answered call makes up for one reset, and
 * useful frames for others, those of before as well: windows are given back for what was sent a while ago.  What is beyond ends the connection:
 * h2_condemn queues a GOAWAY, and the connection's goroutine sends it and closes.
 *
 * What is told goes into a short queue of the server, one event of a kind in NEWS_EVERY; h2_take hands them to the application, which logs
 * them.  Nothing that the client chose is in the text, but its address.
 */
#include "h2_conn.h"

#include <stdarg.h>
#include <stdio.h>

#define SECOND ((int64_t)1000 * 1000 * 1000)
#define METER_SPAN (10 * SECOND)
#define NEWS_EVERY SECOND
#define BLOCK_LEAST (256 * 1024)
#ifndef OUT_MOST /* tests/fuzz has less */
#define OUT_MOST 1000
#define UNSTARTED_MOST 2048
#endif
#define H2_TEXT 280
#define EARNED_MOST 10 /* times max_frames */
#define FRAME_TYPES 10
#define TOO_MANY_CONTINUATIONS (-905) /* nghttp2's, which older headers do not name */

const char *const h2_why_names[H2_WHYS] = {
    [WHY_RESETS] = "rapid reset",
    [WHY_FRAMES] = "frame flood",
    [WHY_HEADERS] = "header flood",
    [WHY_PROTOCOL] = "protocol error",
    [WHY_PREFACE] = "not HTTP/2",
    [WHY_HANDSHAKE] = "handshake timeout",
    [WHY_HEADER_TIMEOUT] = "header timeout",
    [WHY_KEEPALIVE] = "keepalive timeout",
    [WHY_WRITE] = "write timeout",
    [WHY_PINGS] = "too many pings",
    [WHY_ORPHANS] = "cancelled calls",
    [WHY_BUFFERED] = "buffered requests",
    [WHY_ACCEPT] = "accept",
    [WHY_TLS] = "TLS",
};

/* ---- news ---- */

/* Any thread; locks below ready_lock only. */
static void
tell(H2Server *srv, H2Why why, const char *what, const char *peer, const char *text)
{
    int64_t now = nanotime();
    mutex_lock(&srv->ready_lock);
    srv->whys[why]++;
    if (srv->nnews == H2_NEWS || (srv->told[why] != 0 && now - srv->told[why] < NEWS_EVERY)) {
        srv->untold[why]++;
    }
    else {
        char *to = srv->news[(srv->news_first + srv->nnews++) % H2_NEWS];
        int n =
            snprintf(to, H2_NEWS_SIZE, "%s%s%s%s (%s)", what, peer, *peer != 0 ? ": " : "", text, h2_why_names[why]);
        if (srv->untold[why] != 0 && n > 0 && n < H2_NEWS_SIZE)
            snprintf(to + n, H2_NEWS_SIZE - (size_t)n, " (%u more warnings were left out before)", srv->untold[why]);
        srv->untold[why] = 0;
        srv->told[why] = now;
        srv->notice = true;
        waitq_wake(&srv->takers);
    }
    mutex_unlock(&srv->ready_lock);
}

void
h2_tell(H2Server *srv, H2Why why, const char *fmt, ...)
{
    char text[H2_TEXT];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    tell(srv, why, "", "", text);
}

/* Why the connection is closed, for the application; the first reason counts.  Owner. */
void
h2_blame(H2Conn *c, H2Why why, const char *fmt, ...)
{
    char text[H2_TEXT];
    va_list args;
    if (c->blamed)
        return;
    c->blamed = true;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    tell(c->server, why, "closed ", c->peer, text);
}

/* The connection ends now, with a GOAWAY.  Returns what a callback of nghttp2 returns so that it goes no further.  Owner. */
int
h2_condemn(H2Conn *c, H2Why why, uint32_t error, const char *fmt, ...)
{
    char text[H2_TEXT];
    va_list args;
    if (c->condemned)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    h2_blame(c, why, "%s", text);
    c->condemned = true;
    nghttp2_submit_goaway(c->session, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(c->session), error,
                          (const uint8_t *)h2_why_names[why], strlen(h2_why_names[why]));
    return NGHTTP2_ERR_CALLBACK_FAILURE;
}

/* A call was refused: h2_blame of a connection that goes on. */
static void
complain(H2Conn *c, H2Why why, const char *fmt, uint64_t n)
{
    char text[H2_TEXT];
    snprintf(text, sizeof text, fmt, (unsigned long long)n);
    tell(c->server, why, "refused calls of ", c->peer, text);
}

/* ---- meters ---- */

/* True: that was one too many.  m->at runs ahead of the clock by a tenth of a second for a hundredth of the burst. */
static bool
spend(H2Meter *m, int64_t now, uint32_t burst)
{
    int64_t cost = METER_SPAN / burst;
    if (m->at <= now) {
        m->at = m->since = now;
        m->count = 0;
    }
    m->count++;
    m->at += cost;
    return m->at - now > METER_SPAN;
}

/* A frame that asks for nothing.  0, or what h2_condemn returns. */
int
h2_spend_frame(H2Conn *c, uint8_t type)
{
    static const char *const names[FRAME_TYPES] = {"DATA",          "HEADERS",      "PRIORITY", "RST_STREAM",
                                                   "SETTINGS",      "PUSH_PROMISE", "PING",     "GOAWAY",
                                                   "WINDOW_UPDATE", "CONTINUATION"};
    uint32_t most = c->server->options.max_frames;
    H2Meter *m = &c->frames;
    if (c->earned > EARNED_MOST * (uint64_t)most)
        c->earned = EARNED_MOST * (uint64_t)most;
    if (most == 0 || c->earned != 0) {
        c->earned -= c->earned != 0;
        return 0;
    }
    if (!spend(m, c->last_read, most))
        return 0;
    return h2_condemn(c, WHY_FRAMES, NGHTTP2_ENHANCE_YOUR_CALM, "%u frames without use in %.1f s, the last of them %s",
                      m->count, (double)(c->last_read - m->since) / 1e9,
                      type < FRAME_TYPES ? names[type] : "of an unknown type");
}

/* st was reset, by the client or because of what it sent. */
void
h2_spend_reset(H2Conn *c, const H2Stream *st)
{
    uint32_t most = c->server->options.max_resets;
    H2Meter *m = &c->resets;
    int64_t age = c->last_read - st->started;
    if (most == 0 || st->status_sent || age > SECOND)
        return;
    if (st->deadline != 0 && st->deadline <= c->last_read && age > SECOND / 50)
        return; /* an overloaded server's clients cancel thousands of calls when these are due */
    if (c->answered > most)
        c->answered = most;
    if (c->answered != 0)
        c->answered--;
    else if (spend(m, c->last_read, most))
        h2_condemn(c, WHY_RESETS, NGHTTP2_ENHANCE_YOUR_CALM, "%u streams reset in %.1f s", m->count,
                   (double)(c->last_read - m->since) / 1e9);
}

/* ---- headers ---- */

/* The most bytes of a header block: beyond it the connection ends. */
uint64_t
h2_block_most(const H2Conn *c)
{
    uint64_t most = 4 * (uint64_t)c->server->options.max_headers;
    return most > BLOCK_LEAST ? most : BLOCK_LEAST;
}

/* n more bytes belong to the header block that has begun: decoded or on the wire. */
int
h2_spend_header(H2Conn *c, size_t n)
{
    c->block_bytes += n;
    if (c->block_bytes <= h2_block_most(c))
        return 0;
    return h2_condemn(c, WHY_HEADERS, NGHTTP2_ENHANCE_YOUR_CALM, "metadata of more than %llu bytes",
                      (unsigned long long)(c->block_bytes - n));
}

/* ---- memory ---- */

/* n more bytes of requests are kept.  False: too many. */
bool
h2_charge(H2Conn *c, uint64_t n)
{
    uint64_t most = c->server->options.max_buffered, kept = c->received - atomic_load_relaxed(&c->taken);
    if (most != 0 && kept + n > most) {
        complain(c, WHY_BUFFERED, "%llu bytes of requests are waiting to be read", kept);
        return false;
    }
    c->received += n;
    return true;
}

/* Whether there is room for one more call's handler. */
bool
h2_admit(H2Conn *c)
{
    uint32_t most = c->server->options.max_streams, n = atomic_load_relaxed(&c->orphans);
    if (most == 0 || n < most)
        return true;
    complain(c, WHY_ORPHANS, "%llu cancelled calls are still running", n);
    return false;
}

/* Whether to read on.  Owner. */
H2Reading
h2_may_read(H2Conn *c)
{
    if ((c->pending != NULL || c->held) && nghttp2_session_get_outbound_queue_size(c->session) > OUT_MOST)
        return READ_WHEN_WRITTEN;
    return atomic_load_relaxed(&c->unstarted) > UNSTARTED_MOST ? READ_SOON : READ_ON;
}

/* ---- what is no HTTP/2 ---- */

/* nghttp2 gave up on n bytes at `in`: says why, to the client as far as it can be told. */
void
h2_unreadable(H2Conn *c, const char *in, size_t n, int error)
{
    static const char sorry[] = "HTTP/1.1 505 HTTP Version Not Supported\r\n"
                                "content-type: text/plain\r\ncontent-length: 48\r\nconnection: close\r\n\r\n"
                                "This is a gRPC server: it speaks HTTP/2 only.\r\n\n";
    if (error != NGHTTP2_ERR_BAD_CLIENT_MAGIC) {
        bool flood = error == NGHTTP2_ERR_FLOODED || error == TOO_MANY_CONTINUATIONS;
        h2_condemn(c,
                   error == NGHTTP2_ERR_FLOODED ? WHY_FRAMES
                   : flood                      ? WHY_HEADERS
                                                : WHY_PROTOCOL,
                   flood ? NGHTTP2_ENHANCE_YOUR_CALM : NGHTTP2_PROTOCOL_ERROR, "%s", nghttp2_strerror(error));
        return;
    }
    size_t word = 0;
    while (word < n && in[word] >= 'A' && in[word] <= 'Z')
        word++;
    if (word > 0 && (word == n || in[word] == ' ') && !(word == 3 && memcmp(in, "PRI", 3) == 0)) {
        (void)c->io->write(c, sorry, sizeof sorry - 1);
        h2_blame(c, WHY_PREFACE, "an HTTP/1 request");
        c->muted = true;
    }
    else {
        h2_condemn(c, WHY_PREFACE, NGHTTP2_PROTOCOL_ERROR,
                   in[0] == 0x16 ? "a TLS handshake on a port without TLS" : "no HTTP/2 preface");
    }
}
