/* Sends and receives floods of Jupyter messages with libzmq. The caller passes pointers to libzmq's functions, from the
 * library that pyzmq has loaded, so that nothing has to be linked. */
#define _POSIX_C_SOURCE 200809L
#include <stddef.h>
#include <string.h>
#include <time.h>

#define SNDMORE 2
#define SIGNATURE 64
#define DIGITS 9

typedef int (*send_fn)(void *socket, const void *data, size_t size, int flags);

struct frame {
    const char *data;
    size_t size;
};

static void wait_until(struct timespec *at, long nanoseconds) {
    at->tv_nsec += nanoseconds;
    while (at->tv_nsec >= 1000000000L) {
        at->tv_nsec -= 1000000000L;
        at->tv_sec += 1;
    }
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, at, NULL);
}

/* Sends `count` messages: topic, delimiter, signature, header, parent header, metadata, content. Writes the number of
 * each message into the header at `number_at`. If `per_tick` is not zero, waits for the next tick after that many
 * messages; otherwise sends as fast as the socket takes them. Returns the number of sent messages. */
long flood(send_fn send, void *socket, struct frame topic, struct frame delimiter, const char *signatures, char *header,
           size_t header_size, size_t number_at, struct frame parent, struct frame metadata, struct frame content,
           long count, long per_tick, long tick_nanoseconds) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    for (long n = 0; n < count; n++) {
        long rest = n;
        for (int digit = DIGITS - 1; digit >= 0; digit--) {
            header[number_at + digit] = '0' + rest % 10;
            rest /= 10;
        }
        if (send(socket, topic.data, topic.size, SNDMORE) < 0 ||
            send(socket, delimiter.data, delimiter.size, SNDMORE) < 0 ||
            send(socket, signatures + n * SIGNATURE, SIGNATURE, SNDMORE) < 0 ||
            send(socket, header, header_size, SNDMORE) < 0 || send(socket, parent.data, parent.size, SNDMORE) < 0 ||
            send(socket, metadata.data, metadata.size, SNDMORE) < 0 || send(socket, content.data, content.size, 0) < 0)
            return n;
        if (per_tick > 0 && (n + 1) % per_tick == 0)
            wait_until(&at, tick_nanoseconds);
    }
    return count;
}

typedef int (*receive_fn)(void *socket, void *data, size_t size, int flags);

/* Receives and drops frames until the socket's timeout. Returns how many of them were topics of stream messages. */
long drain(receive_fn receive, void *socket, struct frame topic) {
    char data[4096];
    long count = 0;
    for (;;) {
        int size = receive(socket, data, sizeof data, 0);
        if (size < 0)
            return count;
        if ((size_t)size == topic.size && memcmp(data, topic.data, topic.size) == 0)
            count++;
    }
}
