/* The wake-up protocol of ipc/doorbell.py and ipc/ring.py: no record is ever left unread by a worker that sleeps.
 *
 * The writer publishes (tail++), then rings (bell = 1). The reader sleeps on the bell; awake, it clears the bell, then
 * polls up to the tail it sees. The order clear-then-poll is the claim: swap the two lines marked (*) and SPIN finds
 * the lost wake-up.
 */
#define RECORDS 4

byte tail = 0, head = 0;
bool bell = false;
bool done = false;

active proctype engine() {
    do
    :: tail < RECORDS -> tail++; bell = true
    :: tail == RECORDS -> break
    od;
    done = true
}

active proctype worker() {
    byte seen;
end:
    do
    :: bell ->
        bell = false;      /* (*) clear */
        seen = tail;       /* (*) poll  */
        head = seen
    od
}

ltl everything_is_read { <> (done && head == RECORDS) }
