/* h2_conn.h: what h2_conn.c, h2_frames.c and h2_stream.c are to each other. */
#ifndef GMP_H2_CONN_H
#define GMP_H2_CONN_H

#include <nghttp2/nghttp2.h>

#include "h2.h"

#define OUT_RESERVE (20 * 1024) /* more than one frame that nghttp2 writes itself */
#define FLUSH_EVERY 64          /* ops posted, until a native goroutine is woken to send them */

/* ---- h2_stream.c ---- */
/* The call has ended for the application, unless it has already.  Any thread. */
void h2_end_stream(H2Stream *st, H2End why);
/* n bytes that were posted are on their way, or dropped. */
void h2_out_gone(H2Stream *st, uint32_t n);
void h2_deadline_due(void *arg, uint32_t seq); /* of the call's timer; drops its reference */

/* ---- h2_guard.c: for the owner ---- */
void h2_blame(H2Conn *c, H2Why why, const char *fmt, ...) GMP_PRINTF(3, 4);
int h2_condemn(H2Conn *c, H2Why why, uint32_t error, const char *fmt, ...) GMP_PRINTF(4, 5);
int h2_spend_frame(H2Conn *c, uint8_t type);
uint64_t h2_block_most(const H2Conn *c);
int h2_spend_header(H2Conn *c, size_t n);
void h2_spend_reset(H2Conn *c, const H2Stream *st);
bool h2_charge(H2Conn *c, uint64_t n);
bool h2_admit(H2Conn *c);
typedef enum H2Reading { READ_ON, READ_SOON, READ_WHEN_WRITTEN } H2Reading;
H2Reading h2_may_read(H2Conn *c);
void h2_unreadable(H2Conn *c, const char *in, size_t n, int error);

/* ---- h2_frames.c: for the owner ---- */
nghttp2_session *h2_session_new(H2Conn *c); /* NULL: no memory */
/* Does what was posted.  When the connection is dead: drops it. */
void h2_drain_outbox(H2Conn *c);
/* Ends the calls that are to end at once, but after what was sent before, as far as the client takes it: that was flushed.  False: none. */
bool h2_cancel_asked(H2Conn *c);
void h2_hand_over(H2Conn *c); /* the calls that came, to the application */
/* The session has let go of st. */
void h2_stream_gone(H2Conn *c, H2Stream *st, H2End why);
void h2_goaway(H2Conn *c);             /* no new calls from here on; once */
extern const uint8_t h2_drain_ping[8]; /* its answer: the client knows that we are about to go */

#endif
